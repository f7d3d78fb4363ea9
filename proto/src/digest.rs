//! A digest of a node's full state, computed by both ends, so that a lost or misapplied delta is
//! noticed at the next message instead of never.

use prost::Message;

use crate::inventory::{Device, KubeletView, NodeFacts};

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}

/// Digest of the full state: FNV-1a (64 bit) over the encoded facts, the encoded kubelet view and
/// the encoded devices in the order of their UUIDs. Not a protection against forgery.
pub fn digest<'a>(
    node: Option<&NodeFacts>,
    kubelet: Option<&KubeletView>,
    devices: impl IntoIterator<Item = &'a Device>,
) -> u64 {
    let mut sorted: Vec<&Device> = devices.into_iter().collect();
    sorted.sort_by(|left, right| left.uuid.cmp(&right.uuid));
    let facts = node.map(Message::encode_to_vec).unwrap_or_default();
    let view = kubelet.map(Message::encode_to_vec).unwrap_or_default();
    let hash = fnv1a(fnv1a(FNV_OFFSET, &facts), &view);
    sorted.iter().fold(hash, |hash, device| {
        fnv1a(hash, &device.encode_length_delimited_to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::digest;
    use crate::inventory::Device;

    fn device(uuid: &str, leaked: bool) -> Device {
        Device {
            uuid: uuid.into(),
            leaked,
            ..Device::default()
        }
    }

    #[test]
    fn order_of_devices_does_not_matter_and_their_state_does() {
        let (a, b) = (device("GPU-a", false), device("GPU-b", false));
        assert_eq!(digest(None, None, [&a, &b]), digest(None, None, [&b, &a]));
        assert_ne!(
            digest(None, None, [&a, &b]),
            digest(None, None, [&a, &device("GPU-b", true)])
        );
    }
}
