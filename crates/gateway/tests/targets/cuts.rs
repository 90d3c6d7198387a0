//! Where to cut some bytes, so that they arrive in parts: chosen by the bytes themselves, to be repeatable.

/// Ends of the parts, growing; the last is the whole.
pub fn of(bytes: &[u8]) -> Vec<usize> {
    let mut state = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut ends = vec![bytes.len()];
    for _ in 0..state % 5 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        ends.push((state >> 33) as usize % (bytes.len() + 1));
    }
    ends.sort_unstable();
    ends
}
