use super::*;
use std::{fs, sync::mpsc};

/// A target that waits for leave before each write.
struct Gate {
    leave: mpsc::Receiver<()>,
    out: mpsc::Sender<Vec<u8>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.leave.recv().map_err(io::Error::other)?;
        self.out.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn off_is_nothing() {
    assert!(Writer::start(&AccessLogOutput::Off).unwrap().is_none());
}

#[tokio::test]
async fn every_line_of_every_worker_is_written_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let writer = Writer::start(&AccessLogOutput::File(path.clone())).unwrap().unwrap();
    let threads: Vec<_> = (0..3)
        .map(|worker| {
            let sink = writer.sink();
            thread::spawn(move || {
                for n in 0..1000 {
                    sink.push(format!("{worker} {n}\n").as_bytes(), 1 << 20);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    writer.stop().await;
    let text = fs::read_to_string(&path).unwrap();
    for worker in ["0", "1", "2"] {
        let own: Vec<_> =
            text.lines().filter_map(|l| l.split_once(' ')).filter(|l| l.0 == worker).map(|l| l.1).collect();
        assert_eq!(own, (0..1000).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    }
    assert_eq!(writer.losses(), (0, 0));
}

#[tokio::test]
async fn a_slow_writer_costs_lines_not_requests() {
    let (leave, gate) = mpsc::channel();
    let (out, written) = mpsc::channel();
    let writer = Writer::spawn(Box::new(Gate { leave: gate, out }), None).unwrap();
    let sink = writer.sink();
    sink.push(b"first\n", 8);
    leave.send(()).unwrap();
    // The first line is out, so the buffer is empty again: one more fits, the next does not.
    assert_eq!(written.recv().unwrap(), b"first\n");
    sink.push(b"second\n", 8);
    sink.push(b"third\n", 0);
    assert_eq!(writer.losses().0, 1);
    leave.send(()).unwrap();
    assert_eq!(written.recv().unwrap(), b"second\n");
    drop(leave);
    sink.push(b"lost\n", 8);
    writer.stop().await;
    assert_eq!(writer.losses(), (1, 1));
}

#[tokio::test]
async fn a_moved_file_is_opened_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let writer = Writer::start(&AccessLogOutput::File(path.clone())).unwrap().unwrap();
    fs::rename(&path, &moved).unwrap();
    writer.reopen();
    while !path.exists() {
        thread::yield_now();
    }
    writer.sink().push(b"new\n", 100);
    writer.stop().await;
    assert_eq!(fs::read(&path).unwrap(), b"new\n");
    assert_eq!(fs::read(&moved).unwrap(), b"");
}
