use super::*;
use weft_core::model::ObjectKey;

const NOW: Duration = Duration::ZERO;

fn route(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: Kind::HttpRoute, key: ObjectKey::new(namespace, name) }
}

fn gateway(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef { kind: Kind::Gateway, key: ObjectKey::new(namespace, name) }
}

fn drain(queue: &mut Queue, now: Instant) -> Vec<String> {
    std::iter::from_fn(|| queue.pop(now)).map(|o| o.key.to_string()).collect()
}

#[test]
fn kinds_and_namespaces_take_turns() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    for name in ["1", "2", "3", "4"] {
        queue.push(&route("hot", name), NOW, None, now);
    }
    queue.push(&route("quiet", "1"), NOW, None, now);
    queue.push(&gateway("infra", "g"), NOW, None, now);
    // Delayed objects become ready in the order of kinds; after that, turns.
    assert_eq!(drain(&mut queue, now), ["infra/g", "hot/1", "quiet/1", "hot/2", "hot/3", "hot/4"]);
}

#[test]
fn an_object_is_held_once_and_runs_again_when_pushed_while_running() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let one = route("a", "1");
    queue.push(&one, NOW, None, now);
    queue.push(&one, NOW, None, now);
    assert_eq!(queue.len(), 1);
    assert_eq!(queue.pop(now), Some(one.clone()));
    assert_eq!((queue.pop(now), queue.len()), (None, 0));
    queue.push(&one, NOW, None, now);
    assert_eq!(queue.pop(now), None, "it runs");
    assert_eq!(queue.done(&one), Ended::Again);
    queue.push(&one, NOW, None, now);
    assert_eq!(queue.pop(now), Some(one.clone()));
    assert_eq!(queue.done(&one), Ended::Done);
    assert_eq!(queue.oldest(), None);
}

#[test]
fn a_better_status_is_not_held_and_a_worse_one_is_held_from_the_beginning() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let (one, second) = (gateway("a", "1"), Duration::from_secs(1));
    queue.push(&one, 2 * second, None, now);
    assert_eq!(queue.next_due(), Some(now + 2 * second));
    queue.push(&one, 2 * second, None, now + second);
    assert_eq!(queue.next_due(), Some(now + 2 * second), "held from when it began to wait");
    queue.push(&one, NOW, None, now + second);
    assert_eq!(queue.pop(now + second), Some(one));
}

#[test]
fn a_failure_is_waited_out_whatever_is_pushed() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    let (one, second) = (route("a", "1"), Duration::from_secs(1));
    queue.push(&one, NOW, None, now);
    assert_eq!(queue.pop(now), Some(one.clone()));
    assert!(!queue.has_failed(&one));
    queue.failed(&one, now, |failures| second * failures);
    queue.push(&one, NOW, None, now);
    assert!(queue.has_failed(&one));
    assert_eq!((queue.pop(now), queue.oldest()), (None, Some(now)));
    assert_eq!(queue.pop(now + second), Some(one.clone()));
    queue.failed(&one, now + second, |failures| second * failures);
    assert_eq!(queue.next_due(), Some(now + 3 * second));
}

#[test]
fn five_thousand_routes_of_one_namespace_delay_another_by_one() {
    let (mut queue, now) = (Queue::default(), Instant::now());
    for n in 0..5000 {
        queue.push(&route("hot", &n.to_string()), NOW, None, now);
    }
    assert!(queue.pop(now).is_some());
    queue.push(&route("quiet", "1"), NOW, None, now);
    let next = [queue.pop(now), queue.pop(now)];
    assert!(next.contains(&Some(route("quiet", "1"))), "{next:?}");
}
