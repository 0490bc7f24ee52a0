use super::*;
use proptest::prelude::*;
use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

#[test]
fn a_message_arrives_with_its_descriptors() {
    let (a, b) = UnixStream::pair().unwrap();
    let (mut read_end, write_end) = std::io::pipe().unwrap();
    let long = "x".repeat(CHUNK_BYTES + 1);
    for (text, fds) in [("none", 0), ("one", 1), ("many", MAX_FDS)] {
        send_message(a.as_fd(), &text, &vec![write_end.as_fd(); fds]).unwrap();
        let frame = read_frame(b.as_fd()).unwrap().unwrap();
        assert_eq!((frame.message::<String>().unwrap().as_str(), frame.fds.len()), (text, fds));
        if let Some(fd) = frame.fds.into_iter().next() {
            File::from(fd).write_all(b"!").unwrap();
            let mut got = [0];
            read_end.read_exact(&mut got).unwrap();
        }
    }
    let writer = std::thread::spawn(move || send_message(a.as_fd(), &long, &[]).unwrap());
    assert_eq!(read_frame(b.as_fd()).unwrap().unwrap().message::<String>().unwrap().len(), CHUNK_BYTES + 1);
    writer.join().unwrap();
    assert!(read_frame(b.as_fd()).unwrap().is_none(), "closed between frames");
}

#[test]
fn descriptors_belong_to_their_own_frame() {
    let (a, b) = UnixStream::pair().unwrap();
    let fd = File::open("/dev/null").unwrap();
    send_message(a.as_fd(), &1, &[]).unwrap();
    send_message(a.as_fd(), &2, &[fd.as_fd(), fd.as_fd()]).unwrap();
    send_message(a.as_fd(), &3, &[]).unwrap();
    let counts: Vec<usize> = (0..3).map(|_| read_frame(b.as_fd()).unwrap().unwrap().fds.len()).collect();
    assert_eq!(counts, [0, 2, 0]);
}

#[test]
fn broken_peers_are_told_apart() {
    fn check(bytes: &[u8]) -> String {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(bytes).unwrap();
        drop(a);
        match read_frame(b.as_fd()) {
            Ok(frame) => frame.map_or("closed".into(), |f| f.message::<u32>().unwrap_err().to_string()),
            Err(e) => e.to_string(),
        }
    }
    assert_eq!(check(b""), "closed");
    assert!(check(&[0xff, 0xff, 0xff, 0xff]).contains("longer than"));
    assert!(check(&[0, 0, 0, 9, b'{']).contains("end of file"));
    assert!(check(&[0, 0]).contains("end of file"));
    assert!(check(&[0, 0, 0, 0]).contains("not the expected JSON"));
    assert!(check(&[0, 0, 0, 2, b'{', b'}']).contains("not the expected JSON"));
}

proptest! {
    /// Whatever comes in whatever pieces: no panic, no more memory than was sent, and frames come out whole.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&bytes).unwrap();
        drop(a);
        while let Ok(Some(frame)) = read_frame(b.as_fd()) {
            prop_assert!(frame.body.len() <= bytes.len());
            let _ = frame.message::<weft_cni::protocol::Request>();
        }
    }

    #[test]
    fn frames_survive_any_split(texts in proptest::collection::vec(".{0,40}", 1..6), split in 1usize..9) {
        let (mut a, b) = UnixStream::pair().unwrap();
        b.set_nonblocking(true).unwrap();
        let sent: Vec<u8> = texts.iter().flat_map(|t| weft_cni::protocol::encode(t).unwrap()).collect();
        let (mut reader, mut got) = (FrameReader::default(), Vec::new());
        for piece in sent.chunks(split) {
            a.write_all(piece).unwrap();
            loop {
                match reader.step(b.as_fd()) {
                    Ok(Step::Done(frame)) => got.push(frame.message::<String>().unwrap()),
                    Ok(Step::More) => {}
                    Ok(Step::Closed) => unreachable!("the writer is open"),
                    Err(WireError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Err(TestCaseError::fail(e.to_string())),
                }
            }
        }
        prop_assert_eq!(got, texts);
    }
}
