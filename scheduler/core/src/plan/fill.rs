//! Which nodes are filled first.

use super::effort::Miss;

/// A node that has room for members of a role.
pub(super) struct Candidate {
    /// Its place in the snapshot.
    pub at: usize,
    /// Members that it has room for.
    pub room: u32,
    /// Free devices of every kind.
    pub spare: u64,
    /// It offers devices at all, free or not.
    pub has_devices: bool,
}

/// Members that the candidates have room for.
pub(super) fn room_of(rooms: &[Candidate]) -> u64 {
    rooms.iter().fold(0u64, |sum, candidate| {
        sum.saturating_add(u64::from(candidate.room))
    })
}

/// Of two groups of candidates the one with the smaller rank is filled first.
pub(super) fn rank(rooms: &[Candidate], wants_devices: bool) -> (bool, u64, usize) {
    rooms
        .iter()
        .map(|a| (a.has_devices && !wants_devices, a.spare, a.at))
        .min()
        .unwrap_or((true, u64::MAX, usize::MAX))
}

/// The node of each of `total` members, on as few of the candidates as it needs; the number that
/// they have room for, when that is too small.
///
/// While some node can be filled by what is still needed, the one that takes most; then, for the
/// rest, the one with the fewest spare devices. A role without devices looks for nodes that offer
/// none first, then for those with the fewest to spare.
pub(super) fn fill(
    mut rooms: Vec<Candidate>,
    total: usize,
    wants_devices: bool,
) -> Result<Vec<usize>, Miss> {
    let sum = room_of(&rooms);
    if sum < u64::try_from(total).unwrap_or(u64::MAX) {
        return Err(Miss::Room(u32::try_from(sum).unwrap_or(u32::MAX)));
    }
    // Those of one class are as good as each other but for their room.
    let class = |a: &Candidate| (!wants_devices).then_some((a.has_devices, a.spare));
    rooms.sort_by_key(|a| (class(a), std::cmp::Reverse(a.room), a.spare, a.at));
    let mut nodes = Vec::with_capacity(total);
    for (position, candidate) in rooms.iter().enumerate() {
        let left = total.saturating_sub(nodes.len());
        if left == 0 {
            break;
        }
        let takes = |a: &Candidate| usize::try_from(a.room).unwrap_or(usize::MAX);
        if takes(candidate) < left {
            nodes.extend(std::iter::repeat_n(candidate.at, takes(candidate)));
            continue;
        }
        let last = rooms
            .iter()
            .skip(position)
            .take_while(|a| class(a) == class(candidate) && takes(a) >= left)
            .min_by_key(|a| (a.spare, a.at));
        nodes.extend(
            last.into_iter()
                .flat_map(|a| std::iter::repeat_n(a.at, left)),
        );
        break;
    }
    Ok(nodes)
}
