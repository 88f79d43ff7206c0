//! The decisions that the safety of an epoch rests on, each as a function of its own, so that the model in
//! `model` checks the lines that run.

/// Why a voter signs what it signs in the first step of a round.
///
/// - `locked`: round and value that this node has precommitted last, if any.
/// - `proposed`: the round's proposal.
/// - `polka`: the earlier round in which `T_hi` prevoted for the proposal, if the proposal shows that.
///
/// True: prevote for it; false: prevote nil. A lock gives way only to a polka of a round that is not older
/// than the lock: that one proves that no other value was, or can be, decided in the lock's round.
pub(super) fn may_prevote<V: PartialEq>(
    locked: Option<&(u32, V)>,
    proposed: &V,
    polka: Option<u32>,
    round: u32,
) -> bool {
    let Some((locked_round, locked_value)) = locked else {
        return polka.is_none_or(|at| at < round);
    };
    match polka {
        Some(at) => at < round && (*locked_round <= at || locked_value == proposed),
        None => locked_value == proposed,
    }
}

/// Whether votes of this weight are a quorum. The weight needed never depends on who is reachable.
pub(super) const fn is_quorum(weight: u64, needed: u64) -> bool {
    needed > 0 && weight >= needed
}

/// The round a node goes to because others are ahead of it: the highest that voters of at least `t_lo`
/// weight have reached (one of them is honest), if that is later than its own.
pub(super) fn catch_up(
    own: Option<u32>,
    seen: impl IntoIterator<Item = (u32, u64)>,
    t_lo: u64,
) -> Option<u32> {
    let mut seen: Vec<(u32, u64)> = seen.into_iter().collect();
    seen.sort_by_key(|(round, _)| std::cmp::Reverse(*round));
    let mut weight = 0_u64;
    let round = seen.into_iter().find_map(|(round, own)| {
        weight = weight.saturating_add(own);
        (weight >= t_lo).then_some(round)
    })?;
    own.is_none_or(|own| round > own).then_some(round)
}
