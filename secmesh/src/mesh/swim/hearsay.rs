//! What a peer's word on others is worth.

use foca::State;

use super::message::{Life, Standing, Update, What};
use super::{HEARD_US, MAX_AHEAD, NUMBER_US, NUMBERS_AT_ONCE, Output, REFUTE_US, Swim};

fn recently(at: Option<u64>, now_us: u64, within: u64) -> bool {
    at.is_some_and(|at| now_us.saturating_sub(at) < within)
}

impl Swim {
    /// Whether everybody whom a message is about is a member, in the life that is meant. Sender and receiver
    /// are named nowhere: nobody asks another one about itself.
    pub(super) fn names_members(&self, src: Life, what: &What) -> bool {
        match what {
            What::Ping { .. } | What::Ack { .. } | What::Announce | What::Feed | What::Gossip => {
                true
            }
            What::Request { target: named, .. }
            | What::Indirect { origin: named, .. }
            | What::IndirectAck { target: named, .. }
            | What::Forwarded { origin: named, .. } => {
                *named != src && self.life(&named.node) == Some(*named)
            }
        }
    }

    /// What of a peer's news is worth foca's while.
    pub(super) fn news(
        &mut self,
        now_us: u64,
        src: Life,
        updates: &[Update],
        out: &mut Vec<Output>,
    ) -> Vec<Update> {
        let mut worth = Vec::new();
        for update in updates {
            if update.life == self.me {
                worth.extend(self.news_of_me(now_us, update));
            } else if self.life(&update.life.node) != Some(update.life) {
                self.counters.news_unknown += 1;
            } else if update.life == src {
                // What it has to say of itself is in the header.
                self.counters.news_ignored += 1;
            } else {
                match self.news_of(now_us, update, out) {
                    Some(update) => worth.push(update),
                    None => self.counters.news_ignored += 1,
                }
            }
        }
        worth
    }

    /// Somebody suspects this node: it says that it is there, now and then. What it is said to have said
    /// already is believed within bounds, for only this node raises that number.
    fn news_of_me(&mut self, now_us: u64, update: &Update) -> Option<Update> {
        if update.standing == Standing::Alive {
            return None;
        }
        let ahead = update.refutations > self.refutations.saturating_add(MAX_AHEAD)
            || update.refutations >= u16::MAX - 1;
        if ahead || recently(self.refuted_us, now_us, REFUTE_US) {
            self.counters.news_ignored += 1;
            return None;
        }
        // More than was said in this life is what is left of an earlier one.
        let above = update.refutations.checked_sub(self.refutations);
        let cost = above.map_or(0, |above| above.saturating_add(1));
        if !self.spend_numbers(now_us, cost) {
            self.counters.unrefuted += 1;
            return None;
        }
        self.refuted_us = Some(now_us);
        Some(Update {
            standing: Standing::Suspect,
            ..*update
        })
    }

    /// Whether so many numbers of refutations may be used now.
    fn spend_numbers(&mut self, now_us: u64, cost: u16) -> bool {
        let (left, since) = self.numbers;
        let since = since.unwrap_or(now_us);
        let earned = now_us.saturating_sub(since) / NUMBER_US;
        let left = u16::try_from(earned).map_or(u16::MAX, |earned| left.saturating_add(earned));
        let left = left.min(NUMBERS_AT_ONCE);
        let Some(rest) = left.checked_sub(cost) else {
            return false;
        };
        let since = since.saturating_add(earned.saturating_mul(NUMBER_US));
        self.numbers = (rest, Some(since));
        true
    }

    fn news_of(&mut self, now_us: u64, update: &Update, out: &mut Vec<Output>) -> Option<Update> {
        let node = update.life.node;
        let known = self.known(&node);
        if self.connected.contains(&node) {
            // Its connection says more than others can, unless it has gone quiet.
            let (_, refutations) = known?;
            let peer = self.members.get(&node)?;
            if update.standing == Standing::Alive || recently(peer.heard_us, now_us, HEARD_US) {
                return None;
            }
            return Some(Update {
                refutations,
                standing: Standing::Suspect,
                ..*update
            });
        }
        match known {
            Some((State::Alive | State::Suspect, refutations)) => {
                let ahead = update.refutations > refutations.saturating_add(MAX_AHEAD);
                (!ahead).then_some(Update {
                    standing: match update.standing {
                        Standing::Alive => Standing::Alive,
                        Standing::Suspect | Standing::Down => Standing::Suspect,
                    },
                    ..*update
                })
            }
            // Somebody sees a node that is down here. It is looked for: it is suspected anew, hears of that
            // through whoever sees it, and refutes it.
            Some((State::Down, _)) | None => {
                let peer = self.members.get_mut(&node)?;
                if update.standing != Standing::Alive
                    || recently(peer.looked_for_us, now_us, 5 * REFUTE_US)
                {
                    return None;
                }
                peer.looked_for_us = Some(now_us);
                self.forget(now_us, update.life, out);
                Some(Update {
                    standing: Standing::Suspect,
                    refutations: update.refutations.min(u16::MAX - 2),
                    ..*update
                })
            }
        }
    }
}
