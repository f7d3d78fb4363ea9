//! Small deterministic hashing: the same node name gives the same UUIDs on every machine and in
//! every process. Not a protection against anything.

/// 64-bit FNV-1a of `bytes` starting from `seed`, with a final mix so that similar inputs differ in all bits.
pub fn hash64(seed: u64, bytes: &[u8]) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = bytes.iter().fold(start, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(hash)
}

fn mix(mut value: u64) -> u64 {
    value ^= value >> 30;
    value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^= value >> 27;
    value = value.wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A UUID-shaped text (8-4-4-4-12 hex digits) derived from `key`.
pub fn uuid_text(key: &str) -> String {
    let high = hash64(1, key.as_bytes());
    let low = hash64(2, key.as_bytes());
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff,
    )
}

/// The 16 bytes behind [`uuid_text`] of the same key.
pub fn uuid_bytes(key: &str) -> [u8; 16] {
    let mut bytes = [0_u8; 16];
    let high = hash64(1, key.as_bytes()).to_be_bytes();
    let low = hash64(2, key.as_bytes()).to_be_bytes();
    for (slot, byte) in bytes.iter_mut().zip(high.into_iter().chain(low)) {
        *slot = byte;
    }
    bytes
}

/// UUID text of 16 bytes.
pub fn format_uuid(bytes: &[u8; 16]) -> String {
    let value = u128::from_be_bytes(*bytes);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        value >> 96,
        (value >> 80) & 0xffff,
        (value >> 64) & 0xffff,
        (value >> 48) & 0xffff,
        value & 0xffff_ffff_ffff,
    )
}

#[cfg(test)]
mod tests {
    use super::{format_uuid, uuid_bytes, uuid_text};

    #[test]
    fn text_and_bytes_agree_and_repeat() {
        assert_eq!(format_uuid(&uuid_bytes("node-1/0")), uuid_text("node-1/0"));
        assert_ne!(uuid_text("node-1/0"), uuid_text("node-1/1"));
        assert_eq!(uuid_text("a").len(), 36);
    }
}
