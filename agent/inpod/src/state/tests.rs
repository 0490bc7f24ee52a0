use super::*;
use proptest::prelude::*;

fn record(id: &str) -> PodRecord {
    PodRecord {
        container_id: id.into(),
        namespace: "shop".into(),
        name: id.into(),
        uid: String::new(),
        ips: Vec::new(),
        annotations: BTreeMap::new(),
    }
}

fn enrolled() -> Decision {
    Decision::Enrolled(CaptureConfig::default())
}

fn excluding(port: u16) -> CaptureConfig {
    CaptureConfig { inbound_ports: BTreeSet::from([port]), ..CaptureConfig::default() }
}

/// Runs a story: each event with what the pod should be at that time, and what is to be done then.
fn check(story: &[(Event, &Decision, &[&str])]) {
    let mut pods = Pods::default();
    for (number, (event, decision, want)) in story.iter().enumerate() {
        let decide = |_: &PodRecord| (*decision).clone();
        let done: Vec<String> = pods.on(event.clone(), &decide).iter().map(short).collect();
        assert_eq!(done, *want, "step {number}: {event:?}");
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::Capture { id, config } if *config == CaptureConfig::default() => format!("capture {id}"),
        Action::Capture { id, .. } => format!("capture {id} with exclusions"),
        Action::Release { id } => format!("release {id}"),
        Action::Forget { id } => format!("forget {id}"),
        Action::Reply { ticket, result: Ok(()) } => format!("reply {ticket} ok"),
        Action::Reply { ticket, .. } => format!("reply {ticket} error"),
        Action::RetryLater { id, attempt } => format!("retry {id} #{attempt}"),
    }
}

fn added(ticket: Ticket) -> Event {
    Event::Added { record: record("a"), ticket }
}

fn captured(result: Result<(), &str>) -> Event {
    Event::CaptureEnded { id: "a".into(), result: result.map_err(str::to_owned) }
}

fn released() -> Event {
    Event::ReleaseEnded { id: "a".into(), result: Ok(()) }
}

fn deleted() -> Event {
    Event::Deleted { id: "a".into() }
}

#[test]
fn an_enrolled_pod_starts_when_it_is_captured() {
    let yes = enrolled();
    check(&[
        (added(1), &yes, &["capture a"]),
        (added(2), &yes, &[]), // the runtime repeats itself
        (captured(Ok(())), &yes, &["reply 1 ok", "reply 2 ok"]),
        (added(3), &yes, &["reply 3 ok"]),
        (deleted(), &yes, &["forget a"]),
        (deleted(), &yes, &[]),
    ]);
}

#[test]
fn a_pod_that_is_not_enrolled_starts_at_once_and_can_join_and_leave_later() {
    let (no, yes) = (Decision::NotEnrolled, enrolled());
    check(&[
        (added(1), &no, &["reply 1 ok"]),
        (Event::EnrolmentChanged, &no, &[]),
        (Event::EnrolmentChanged, &yes, &["capture a"]),
        (Event::EnrolmentChanged, &no, &[]), // one thing at a time
        (captured(Ok(())), &no, &["release a"]),
        (Event::EnrolmentChanged, &yes, &[]),
        (released(), &yes, &["capture a"]),
        (captured(Ok(())), &yes, &[]),
        (Event::EnrolmentChanged, &Decision::Enrolled(excluding(80)), &["capture a with exclusions"]),
    ]);
}

#[test]
fn an_unknown_pod_waits_and_is_then_refused() {
    let (unknown, yes) = (Decision::Unknown, enrolled());
    check(&[
        (added(1), &unknown, &[]),
        (added(2), &unknown, &[]),
        (Event::DecisionOverdue(1), &unknown, &["reply 1 error"]),
        (Event::EnrolmentChanged, &yes, &["capture a"]),
        (Event::DecisionOverdue(2), &yes, &[]), // it is known by now
        (Event::Overdue(2), &yes, &["reply 2 error"]),
        (captured(Ok(())), &yes, &[]),
        // Fail closed: not knowing any more changes nothing.
        (Event::EnrolmentChanged, &unknown, &[]),
        (added(3), &unknown, &["reply 3 ok"]),
    ]);
}

#[test]
fn failures_are_answered_and_tried_again() {
    let (yes, no) = (enrolled(), Decision::NotEnrolled);
    check(&[
        (added(1), &yes, &["capture a"]),
        (captured(Err("no")), &yes, &["reply 1 error", "retry a #1"]),
        (Event::Retry { id: "a".into() }, &yes, &["capture a"]),
        (captured(Err("no")), &yes, &["retry a #2"]),
        // Something may be in place: leaving takes it away.
        (Event::EnrolmentChanged, &no, &["release a"]),
        (released(), &no, &[]),
        (Event::Retry { id: "a".into() }, &no, &[]),
    ]);
}

#[test]
fn a_pod_deleted_during_work_is_forgotten_after_it() {
    let yes = enrolled();
    check(&[
        (added(1), &yes, &["capture a"]),
        (deleted(), &yes, &["reply 1 error"]),
        (Event::EnrolmentChanged, &yes, &[]),
        (captured(Ok(())), &yes, &["forget a"]),
        (captured(Ok(())), &yes, &[]),
    ]);
}

#[test]
fn a_new_sandbox_replaces_the_pods_old_one() {
    let yes = enrolled();
    let second = PodRecord { container_id: "b".into(), ..record("a") };
    check(&[
        (added(1), &yes, &["capture a"]),
        (captured(Ok(())), &yes, &["reply 1 ok"]),
        (Event::Added { record: second, ticket: 2 }, &yes, &["forget a", "capture b"]),
        (deleted(), &yes, &[]), // the late DEL touches nothing
    ]);
}

#[test]
fn what_an_earlier_agent_captured_is_taken_up() {
    let found = |captured| Event::Found { record: record("a"), captured };
    let gc = |ids: &[&str]| Event::OnlyThese(ids.iter().map(ToString::to_string).collect());
    let (yes, no, unknown) = (enrolled(), Decision::NotEnrolled, Decision::Unknown);
    check(&[(found(true), &yes, &["capture a"])]);
    check(&[(found(true), &no, &["release a"])]);
    check(&[(found(false), &no, &[])]);
    check(&[
        (found(true), &unknown, &[]),
        (Event::EnrolmentChanged, &yes, &["capture a"]),
        (gc(&["a"]), &yes, &[]),
        (captured(Ok(())), &yes, &[]),
        (gc(&["b"]), &yes, &["forget a"]),
    ]);
}

#[test]
fn a_table_that_the_holder_changed_is_put_in_place_again() {
    let (yes, unknown) = (enrolled(), Decision::Unknown);
    let outdated = Event::TableOutdated { id: "a".into() };
    check(&[
        (added(1), &yes, &["capture a"]),
        (outdated.clone(), &yes, &[]), // it is being put in place
        (captured(Ok(())), &yes, &["reply 1 ok"]),
        (outdated.clone(), &yes, &["capture a"]),
        (captured(Ok(())), &yes, &[]),
        (outdated.clone(), &unknown, &[]),
        (Event::EnrolmentChanged, &yes, &["capture a"]),
        (deleted(), &yes, &[]),
        (captured(Ok(())), &yes, &["forget a"]),
        (outdated, &yes, &[]),
    ]);
}

#[test]
fn check_says_what_is_wrong() {
    let mut pods = Pods::default();
    let (yes, no) = (|_: &PodRecord| enrolled(), |_: &PodRecord| Decision::NotEnrolled);
    assert!(pods.check("a", &record("a"), &yes).is_err());
    assert!(pods.check("a", &record("a"), &no).is_ok());
    pods.on(added(1), &yes);
    assert!(pods.check("a", &record("a"), &yes).is_err());
    pods.on(captured(Ok(())), &yes);
    assert!(pods.check("a", &record("a"), &yes).is_ok());
    assert_eq!(pods.counts(), (1, 0, 1));
}

#[test]
fn capture_stands_from_its_success_until_it_is_to_end() {
    let (yes, no, other) = (enrolled(), Decision::NotEnrolled, Decision::Enrolled(excluding(80)));
    let failed = || Event::ReleaseEnded { id: "a".into(), result: Err("no".into()) };
    // (event, what the pod should be then, whether its capture stands after it)
    let story = [
        (added(1), &no, false),
        (Event::EnrolmentChanged, &yes, false),
        (captured(Err("no")), &yes, false),
        (Event::Retry { id: "a".into() }, &yes, false),
        (captured(Ok(())), &yes, true),
        (Event::EnrolmentChanged, &other, true), // other rules are on their way
        (captured(Err("no")), &other, true),
        (Event::EnrolmentChanged, &Decision::Unknown, true),
        (Event::EnrolmentChanged, &no, false),
        (failed(), &no, false),
        (Event::Retry { id: "a".into() }, &yes, false),
        (captured(Ok(())), &yes, true),
        (deleted(), &yes, false),
        (Event::Found { record: record("a"), captured: true }, &yes, true),
        (deleted(), &yes, false), // work is running; it counts as gone already
    ];
    let mut pods = Pods::default();
    for (number, (event, decision, want)) in story.into_iter().enumerate() {
        pods.on(event, &|_: &PodRecord| decision.clone());
        assert_eq!(pods.standing().count(), usize::from(want), "step {number}");
    }
}

/// Peers hear of an exclusion before its rules are made; and an agent that starts says at once what the one before it said:
/// of a default deny there is no way around for the time between.
#[test]
fn where_tunnels_may_come_follows_what_is_decided() {
    let cidrs =
        CaptureConfig { inbound_cidrs: ["10.0.0.0/8".parse().unwrap()].into(), ..CaptureConfig::default() };
    let outward = CaptureConfig { outbound_ports: BTreeSet::from([5432]), ..CaptureConfig::default() };
    let everywhere = TunnelPort::application([]);
    let story = [
        (Event::Found { record: record("a"), captured: true }, Decision::Unknown, TunnelPort::Hbone),
        (Event::EnrolmentChanged, enrolled(), everywhere.clone()),
        (captured(Ok(())), enrolled(), everywhere.clone()),
        (Event::EnrolmentChanged, Decision::Enrolled(excluding(80)), TunnelPort::application([80])),
        (captured(Err("no")), Decision::Enrolled(excluding(80)), TunnelPort::application([80])),
        (Event::Retry { id: "a".into() }, Decision::Enrolled(cidrs), TunnelPort::Hbone),
        (captured(Ok(())), Decision::Unknown, TunnelPort::Hbone),
        (Event::EnrolmentChanged, Decision::Enrolled(outward), everywhere),
    ];
    let mut pods = Pods::default();
    for (number, (event, decision, want)) in story.into_iter().enumerate() {
        pods.on(event, &|_: &PodRecord| decision.clone());
        let said: Vec<TunnelPort> = pods.standing().map(|(_, tunnel)| tunnel).collect();
        assert_eq!(said, [want], "step {number}");
    }
}

/// One random thing that happens in the world.
#[derive(Clone, Debug)]
enum Step {
    Add(u8),
    Delete(u8),
    Found(u8, bool),
    Only(u8),
    Decide(u8, u8),
    /// The oldest work ends.
    Finish(bool),
    RetryDue,
    Overdue(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pod = 0u8..3;
    proptest::collection::vec(
        prop_oneof![
            pod.clone().prop_map(Step::Add),
            pod.clone().prop_map(Step::Delete),
            (pod.clone(), any::<bool>()).prop_map(|(p, c)| Step::Found(p, c)),
            pod.clone().prop_map(Step::Only),
            (pod, 0u8..4).prop_map(|(p, d)| Step::Decide(p, d)),
            any::<bool>().prop_map(Step::Finish),
            Just(Step::RetryDue),
            any::<bool>().prop_map(Step::Overdue),
        ],
        0..60,
    )
}

#[derive(Default)]
struct World {
    pods: Pods,
    wanted: BTreeMap<String, Decision>,
    work: Vec<(String, bool)>,
    retries: Vec<String>,
    open: BTreeMap<Ticket, String>,
    captured: BTreeSet<String>,
    next: Ticket,
}

impl World {
    fn on(&mut self, event: Event) {
        let wanted = self.wanted.clone();
        let decide = |r: &PodRecord| wanted.get(&r.container_id).cloned().unwrap_or(Decision::Unknown);
        for action in self.pods.on(event, &decide) {
            match action {
                Action::Capture { id, .. } => self.start(id, true),
                Action::Release { id } => self.start(id, false),
                Action::Forget { id } => {
                    assert!(!self.work.iter().any(|(busy, _)| *busy == id), "forgotten while in work");
                    self.captured.remove(&id);
                }
                Action::Reply { ticket, result } => {
                    let id = self.open.remove(&ticket).expect("each caller is answered once");
                    let is_enrolled = matches!(wanted.get(&id), Some(Decision::Enrolled(_)));
                    if result.is_ok() && is_enrolled {
                        assert!(self.captured.contains(&id), "an enrolled pod started unprotected");
                    }
                }
                Action::RetryLater { id, .. } => self.retries.push(id),
            }
        }
    }

    fn start(&mut self, id: String, capture: bool) {
        assert!(!self.work.iter().any(|(busy, _)| *busy == id), "two pieces of work on one pod");
        self.work.push((id, capture));
    }

    fn finish(&mut self, good: bool) {
        if self.work.is_empty() {
            return;
        }
        let (id, capture) = self.work.remove(0);
        let result = if good { Ok(()) } else { Err("bad luck".to_owned()) };
        match (capture, good) {
            (true, true) => drop(self.captured.insert(id.clone())),
            (false, true) => drop(self.captured.remove(&id)),
            _ => {}
        }
        self.on(if capture {
            Event::CaptureEnded { id, result }
        } else {
            Event::ReleaseEnded { id, result }
        });
    }

    fn step(&mut self, step: Step) {
        let name = |pod: u8| format!("p{pod}");
        match step {
            Step::Add(pod) => {
                self.next += 1;
                self.open.insert(self.next, name(pod));
                self.on(Event::Added { record: record(&name(pod)), ticket: self.next });
            }
            Step::Delete(pod) => self.on(Event::Deleted { id: name(pod) }),
            Step::Found(pod, captured) => self.on(Event::Found { record: record(&name(pod)), captured }),
            Step::Only(pod) => self.on(Event::OnlyThese(BTreeSet::from([name(pod)]))),
            Step::Decide(pod, kind) => {
                let decision = match kind {
                    0 => Decision::Unknown,
                    1 => Decision::NotEnrolled,
                    2 => enrolled(),
                    _ => Decision::Enrolled(excluding(80)),
                };
                self.wanted.insert(name(pod), decision);
                self.on(Event::EnrolmentChanged);
            }
            Step::Finish(good) => self.finish(good),
            Step::RetryDue => {
                if let Some(id) = self.retries.pop() {
                    self.on(Event::Retry { id });
                }
            }
            Step::Overdue(all) => {
                if let Some(ticket) = self.open.keys().next().copied() {
                    self.on(if all { Event::Overdue(ticket) } else { Event::DecisionOverdue(ticket) });
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn every_story_ends_as_decided(story in steps()) {
        let mut world = World::default();
        story.into_iter().for_each(|step| world.step(step));
        // Then luck returns: all work succeeds, all retries come, all waiting ends.
        while !world.work.is_empty() || !world.retries.is_empty() {
            world.finish(true);
            world.step(Step::RetryDue);
        }
        while !world.open.is_empty() {
            world.step(Step::Overdue(true));
        }
        let standing: BTreeSet<&str> = world.pods.standing().map(|(r, _)| r.container_id.as_str()).collect();
        for record in world.pods.records() {
            let stands = standing.contains(record.container_id.as_str());
            match world.wanted.get(&record.container_id) {
                Some(Decision::Enrolled(_)) => prop_assert!(stands),
                Some(Decision::NotEnrolled) => prop_assert!(!stands),
                _ => {}
            }
        }
        let known: Vec<String> = world.pods.records().map(|r| r.container_id.clone()).collect();
        for id in known {
            match world.wanted.get(&id) {
                Some(Decision::Enrolled(_)) => prop_assert!(world.captured.contains(&id)),
                Some(Decision::NotEnrolled) => prop_assert!(!world.captured.contains(&id)),
                _ => {}
            }
        }
        prop_assert!(world.work.is_empty());
    }
}
