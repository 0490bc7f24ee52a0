use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Join(Vec<u8>),
    Push(Vec<u8>),
    Advance(usize),
    Send(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..5000);
    let step = prop_oneof![
        bytes().prop_map(Step::Join),
        bytes().prop_map(Step::Push),
        (0_usize..6000).prop_map(Step::Advance),
        (0_usize..6000).prop_map(Step::Send),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn bytes_come_out_as_they_went_in(steps in steps()) {
        let mut chunks = Chunks::default();
        let mut model: VecDeque<u8> = VecDeque::new();
        for step in steps {
            match step {
                Step::Join(bytes) => {
                    model.extend(&bytes);
                    chunks.join(bytes.into());
                }
                Step::Push(bytes) => {
                    model.extend(&bytes);
                    chunks.push(bytes.into());
                }
                Step::Advance(n) => {
                    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                    let count = chunks.slices(&mut slices, n);
                    let seen: Vec<u8> = slices[..count].iter().flat_map(|s| s.iter().copied()).collect();
                    prop_assert!(seen.len() <= n);
                    let expected: Vec<u8> = model.drain(..seen.len()).collect();
                    prop_assert_eq!(&seen, &expected);
                    chunks.advance(seen.len());
                }
                Step::Send(n) => if let Some(first) = chunks.first() {
                    let piece = first.split_to(n.min(first.len()));
                    let expected: Vec<u8> = model.drain(..piece.len()).collect();
                    prop_assert_eq!(&piece[..], &expected[..]);
                    chunks.sent(piece.len());
                }
            }
            prop_assert_eq!(chunks.len(), model.len());
        }
    }
}
