use super::*;

const TPROXY: Surroundings =
    Surroundings { mechanism: Mechanism::Tproxy, ipv6: true, translated: false, listening: BTreeSet::new() };

fn rules(config: &CaptureConfig, mode: Mode, pod: Surroundings) -> String {
    ruleset(config, mode, pod)
}

/// The lines of one chain, hook first.
fn chain<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("  chain {name} {{");
    text.lines().skip_while(|l| *l != start).skip(1).take_while(|l| *l != "  }").map(str::trim).collect()
}

fn all() -> impl Iterator<Item = Surroundings> {
    Mechanism::ALL.into_iter().flat_map(|mechanism| {
        [(true, false), (false, false), (true, true), (false, true)].map(|(ipv6, translated)| Surroundings {
            mechanism,
            ipv6,
            translated,
            listening: BTreeSet::from([8080]),
        })
    })
}

fn both() -> impl Iterator<Item = (Surroundings, Mode)> {
    all().flat_map(|pod| [(pod.clone(), Mode::Capture), (pod, Mode::Drain)])
}

#[test]
fn the_table_is_replaced_in_one_transaction() {
    for (pod, mode) in both() {
        let text = rules(&CaptureConfig::default(), mode, pod.clone());
        assert!(text.starts_with("add table inet weft\ndelete table inet weft\ntable inet weft {\n"));
        assert!(text.ends_with("  }\n}\n"), "{text}");
    }
}

/// Every chain that is jumped to is there, and no chain is there that nobody calls.
#[test]
fn chains_fit_together() {
    let strict = CaptureConfig { strict: true, drop_udp: true, ..CaptureConfig::default() };
    let configs = [CaptureConfig::default(), strict];
    for ((pod, mode), config) in both().flat_map(|of| configs.clone().map(|config| (of.clone(), config))) {
        let text = rules(&config, mode, pod.clone());
        let made: BTreeSet<&str> =
            text.lines().filter_map(|l| l.strip_prefix("  chain ")?.strip_suffix(" {")).collect();
        let words: Vec<&str> = text.split_whitespace().collect();
        let called = words.windows(2).filter(|w| ["goto", "jump"].contains(&w[0])).map(|w| w[1]);
        let is_hooked = |name: &&str| chain(&text, name).first().is_some_and(|line| line.contains("hook"));
        let hooked = made.iter().copied().filter(is_hooked);
        let used: BTreeSet<&str> = called.chain(hooked).collect();
        assert_eq!(made, used, "{pod:?} {mode:?}");
    }
}

#[test]
fn capture_and_guard_share_their_exemptions() {
    for pod in all() {
        let text = rules(&CaptureConfig::default(), Mode::Capture, pod.clone());
        assert!(chain(&text, "first_syn").contains(&"jump exempt_inbound"), "{text}");
        assert_eq!(chain(&text, "not_taken")[0], "jump exempt_inbound");
        assert_eq!(chain(&text, "not_taken").last(), Some(&"drop"));
        let jump = format!("{FIRST_SYN} jump exempt_outbound");
        let taking = if pod.mechanism == Mechanism::Tproxy { "mangle_output" } else { "nat_output" };
        assert!(chain(&text, taking).contains(&jump.as_str()), "{text}");
        assert_eq!(chain(&text, "guard_output")[1..], [jump, format!("{FIRST_SYN} drop")]);
    }
}

#[test]
fn addresses_are_translated_only_where_they_must_be() {
    for pod in all() {
        for mode in [Mode::Capture, Mode::Drain] {
            let text = rules(&CaptureConfig::default(), mode, pod.clone());
            let tproxy = pod.mechanism == Mechanism::Tproxy;
            assert_eq!(text.contains("type nat"), !tproxy || pod.translated, "{pod:?} {mode:?}");
            assert_eq!(text.contains("redirect"), !tproxy && mode == Mode::Capture, "{pod:?} {mode:?}");
            assert_eq!(text.contains("tproxy"), tproxy);
        }
    }
}

#[test]
fn a_dead_port_is_refused_where_the_kernel_can_tell() {
    for pod in all() {
        let text = rules(&CaptureConfig::default(), Mode::Capture, pod.clone());
        let refuses = chain(&text, "first_syn").last() == Some(&RESET);
        assert_eq!(refuses, pod.mechanism != Mechanism::Redirect, "{text}");
    }
}

#[test]
fn what_answers_a_syn_cookie_goes_where_its_syn_went() {
    for (pod, mode) in both() {
        let text = rules(&CaptureConfig::default(), mode, pod.clone());
        let goes =
            chain(&text, "mangle_prerouting").contains(&"tcp flags & (syn | rst | ack) == ack goto later");
        assert_eq!(goes, pod.mechanism == Mechanism::Tproxy && mode == Mode::Capture, "{text}");
    }
    let text = rules(&CaptureConfig::default(), Mode::Capture, TPROXY);
    assert_eq!(
        chain(&text, "later")[1],
        "jump exempt_inbound",
        "what is not captured is left alone here too"
    );
}

#[test]
fn draining_captures_nothing_new_but_keeps_what_lives() {
    let drain = rules(&CaptureConfig::default(), Mode::Drain, TPROXY);
    let full = rules(&CaptureConfig::default(), Mode::Capture, TPROXY);
    for name in ["from_agent", "to_agent"] {
        assert_eq!(chain(&drain, name), chain(&full, name));
    }
    let marks = format!("{} {}", mark_is("ct", LOCAL_MARK), set_mark("meta"));
    assert_eq!(chain(&drain, "mangle_output").last(), Some(&marks.as_str()));
    assert_eq!(chain(&drain, "first_syn").len(), 3, "only what came over lo with a mark");
    for gone in ["guard", "exempt", "15006 accept", "twin"] {
        assert!(!drain.contains(gone), "{gone} in {drain}");
    }
}

#[test]
fn exclusions_become_accepts() {
    let (config, invalid) = CaptureConfig::from_annotations([
        ("weft.dev/exclude-inbound-ports", "9090,80"),
        ("weft.dev/exclude-outbound-cidrs", "10.1.2.3/8, fd00::1"),
    ]);
    assert!(invalid.is_empty());
    let text = rules(&config, Mode::Capture, TPROXY);
    assert_eq!(chain(&text, "exempt_inbound")[2..], ["tcp dport { 80, 9090 } accept", "jump while_away"]);
    assert_eq!(
        chain(&text, "exempt_outbound")[2..],
        ["ip daddr 10.0.0.0/8 accept", "ip6 daddr fd00::1/128 accept"]
    );
    let without_ipv6 = rules(&config, Mode::Capture, Surroundings { ipv6: false, ..TPROXY });
    assert!(!without_ipv6.contains("ip6"), "an IPv6 rule in a pod without IPv6");
}

/// B4: connections that are older than the join never pass our ports.
#[test]
fn a_strict_pods_older_connections_are_reset_both_ways() {
    let (mut config, _) = CaptureConfig::from_annotations([
        ("weft.dev/exclude-inbound-ports", "9090"),
        ("weft.dev/exclude-inbound-cidrs", "10.9.0.0/16"),
    ]);
    for pod in all() {
        let text = rules(&config, Mode::Capture, pod.clone());
        assert!(!text.contains("older") && !text.contains("unprotected"), "{text}");
    }
    config.strict = true;
    for pod in all() {
        let text = rules(&config, Mode::Capture, pod.clone());
        assert!(text.contains("set older { type inet_service; elements = { 8080 } }"), "{text}");
        let later = chain(&text, "later");
        assert!(later.contains(&"jump exempt_inbound"), "{text}");
        let last = later.last().unwrap();
        assert!(last.ends_with(&format!("tcp dport @older {RESET}")), "{text}");
        let output = chain(&text, "unprotected_output");
        assert_eq!(output[..2], ["tcp sport { 9090 } accept", "ip daddr 10.9.0.0/16 accept"]);
        assert_eq!(output.last(), Some(&RESET));
        assert!(!rules(&config, Mode::Drain, pod).contains("older"));
    }
}

#[test]
fn a_table_says_who_gets_past_it_while_no_agent_is_there() {
    let node = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
    let away = WhileAway::new([8080, 80].into(), node.into());
    let config = CaptureConfig { while_away: away, ..CaptureConfig::default() };
    let check = |config: &CaptureConfig, pod: Surroundings, expected: &[&str]| {
        let text = rules(config, Mode::Capture, pod.clone());
        let sets: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  set ")).collect();
        assert_eq!(sets, expected);
        // Nobody, as long as no holder has added a rule.
        assert_eq!(chain(&text, "while_away"), <[&str; 0]>::default());
        // The holder's rules name sets that are there.
        for word in while_away(pod.ipv6).split_whitespace().filter_map(|word| word.strip_prefix('@')) {
            assert!(sets.iter().any(|set| set.starts_with(&format!("{word} "))), "{word} in {sets:?}");
        }
    };
    let probed = "probed { type inet_service; elements = { 80, 8080 } }";
    let node = "node_ip { type ipv4_addr; elements = { 10.0.0.1 } }";
    check(&config, TPROXY, &[probed, node, "node_ip6 { type ipv6_addr; elements = { fd00::1 } }"]);
    check(&config, Surroundings { ipv6: false, ..TPROXY }, &[probed, node]);
    let nobody =
        ["probed { type inet_service; }", "node_ip { type ipv4_addr; }", "node_ip6 { type ipv6_addr; }"];
    check(&CaptureConfig::default(), TPROXY, &nobody);
}

proptest::proptest! {
    /// What a user writes becomes numbers and addresses or nothing: no word of it reaches the program.
    #[test]
    fn no_annotation_panics_or_adds_a_rule(value in ".{0,400}") {
        for name in ["weft.dev/exclude-inbound-ports", "weft.dev/exclude-outbound-cidrs"] {
            let (config, _) = CaptureConfig::from_annotations([(name, value.as_str())]);
            let text = rules(&config, Mode::Capture, TPROXY);
            let bare = rules(&CaptureConfig::default(), Mode::Capture, TPROXY);
            let new = text.lines().filter(|line| !bare.lines().any(|l| l == *line));
            for line in new {
                let word = |w: &str| w.chars().all(|c| c.is_ascii_hexdigit() || "./:,{}".contains(c));
                let known = |w: &str| ["tcp", "dport", "ip", "ip6", "daddr", "accept"].contains(&w);
                assert!(line.split_whitespace().all(|w| word(w) || known(w)), "{line}");
            }
        }
    }
}
