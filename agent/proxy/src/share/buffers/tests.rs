use super::*;

#[test]
fn what_is_held_is_counted_and_given_back() {
    let buffers = Buffers::new(100, None);
    let (mut one, mut other) = (Held::of(&buffers), Held::of(&buffers));
    one.set(60);
    assert!(!other.is_spent());
    other.set(50);
    assert!(one.is_spent() && other.is_spent());
    one.set(10);
    assert!(!one.is_spent());
    assert_eq!((buffers.held(), buffers.peak(), buffers.squeezed()), (60, 110, 2));
    drop((one, other));
    assert_eq!(buffers.held(), 0);
}
