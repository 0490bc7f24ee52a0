use super::*;
use crate::fixtures::workload;
use MtlsMode::{Permissive, Strict};

#[test]
fn the_mode_of_the_moment_decides() {
    let check = |captured, known: Option<(&str, MtlsMode)>, port, expected| {
        let ip = [10, 0, 0, 1].into();
        let pod = workload("a", ip, true, captured);
        let mut config = Config::default();
        if let Some((name, mode)) = known {
            config.workloads.insert(ip, workload(name, ip, true, mode));
        }
        let action = decide(&config, &pod, SocketAddr::new(ip, port));
        assert_eq!(action, expected, "{captured:?} {known:?} {port}");
    };
    check(Permissive, None, 80, Action::Pass);
    check(Strict, None, 80, Action::Refuse);
    check(Strict, Some(("a", Permissive)), 80, Action::Pass);
    check(Permissive, Some(("a", Strict)), 80, Action::Refuse);
    // The Config has not heard yet that the address has a new owner.
    check(Strict, Some(("before", Permissive)), 80, Action::Refuse);
    for port in [15001, 15006, 15008] {
        check(Permissive, None, port, Action::Refuse);
    }
}
