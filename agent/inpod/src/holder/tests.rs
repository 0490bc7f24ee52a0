use super::*;
use std::thread;
use tempfile::TempDir;

/// A holder that refuses `refusals` times and then has nothing more to give; ends after that.
fn grudging(run_dir: &Path, refusals: usize) -> thread::JoinHandle<()> {
    let listener = bind(&handoff_path(run_dir)).unwrap();
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        for turn in 0..=refusals {
            let (stream, _) = listener.accept().unwrap();
            next_message(stream.as_fd()).unwrap();
            if turn < refusals {
                let refusal = Answer::Failed { reason: "busy".into() };
                send_message(stream.as_fd(), &refusal, &[]).unwrap();
            } else {
                Table::default().send_all(stream.as_fd()).unwrap();
            }
        }
    })
}

#[test]
fn a_holder_that_refuses_is_asked_again_and_never_pushed_aside() {
    let dir = TempDir::new().unwrap();
    let later = || Instant::now() + Duration::from_secs(60);
    assert!(matches!(take_over_until(dir.path(), None, later()), Ok(Predecessor::None)), "no socket");
    let old = grudging(dir.path(), 2);
    assert!(matches!(take_over_until(dir.path(), None, later()), Ok(Predecessor::Gave(..))));
    old.join().unwrap();
    assert!(
        matches!(take_over_until(dir.path(), None, later()), Ok(Predecessor::None)),
        "a dead one's socket"
    );

    let old = grudging(dir.path(), 1);
    let given_up = take_over_until(dir.path(), None, Instant::now());
    assert!(matches!(given_up, Err(RunError::NotHandedOver(HolderError::Failed(_)))));
    let found = take_over_until(dir.path(), None, later());
    assert!(matches!(found, Ok(Predecessor::Gave(..))), "it is still where it was");
    old.join().unwrap();

    let old = grudging(dir.path(), 1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs); // told to end
    let stopped = take_over_until(dir.path(), Some(&OwnedFd::from(ours)), later());
    assert!(matches!(stopped, Ok(Predecessor::Stopped)));
    assert!(matches!(take_over_until(dir.path(), None, later()), Ok(Predecessor::Gave(..))));
    old.join().unwrap();
}

/// A holder that ends when it is alone, with an agent; then it is told to end.
fn told_to_end(run_dir: &Path) -> (thread::JoinHandle<Ended>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let config = HolderConfig { run_dir: run_dir.into(), stop: Some(ours.into()) };
    let holder = thread::spawn(move || run_until(config, Told::WhenAlone).unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    let agent = loop {
        match UnixStream::connect(socket_path(run_dir)) {
            Ok(agent) => break agent,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::yield_now();
    };
    send_message(agent.as_fd(), &Ask::Hello { version: VERSION, started: 1 }, &[]).unwrap();
    assert!(client::read_items(agent.as_fd()).unwrap().is_empty());
    drop(theirs);
    (holder, agent)
}

#[test]
fn a_holder_that_is_told_to_end_does_so_after_its_agent() {
    let dir = TempDir::new().unwrap();
    let (holder, agent) = told_to_end(dir.path());
    send_message(agent.as_fd(), &Ask::ClosePod { container_id: "a".into() }, &[]).unwrap();
    let answer: Answer = read_frame(agent.as_fd()).unwrap().unwrap().message().unwrap();
    assert_eq!(answer, Answer::Ok, "it still serves");
    drop(agent);
    assert_eq!(holder.join().unwrap(), Ended::Stopped);

    let (holder, agent) = told_to_end(dir.path());
    let (table, old) = take_over(dir.path()).unwrap().expect("it still hands over");
    assert_eq!(table.len(), 0);
    send_message(old.as_fd(), &Handoff::Taken, &[]).unwrap();
    assert_eq!(holder.join().unwrap(), Ended::HandedOver);
    drop(agent);
}
