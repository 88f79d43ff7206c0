//! `join --standby`: a spare server that asks until somebody is missing.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::clean;
use super::time::{rfc3339, span};
use super::{CliError, note};
use crate::clock::{Clock as _, SystemClock};
use crate::entropy;
use crate::mesh::identity::Ticket;
use crate::mesh::join::JoinReply;
use crate::mesh::transport;

/// Shortest pause between two questions.
const PAUSE: Duration = Duration::from_secs(2);
/// And up to so much more, drawn anew each time, milliseconds: spares that were started at once drift apart.
const JITTER_MS: u64 = 3_000;
/// Pause before the next member is asked whether it agrees.
const AGREE: Duration = Duration::from_millis(250);
/// A changed answer is told not more often than this, microseconds; members may differ in what they say.
const TELL_US: u64 = 10_000_000;
/// The same answer is told again after this, microseconds.
const TELL_AGAIN_US: u64 = 600_000_000;

/// What a member said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Yes,
    NotNow,
    No,
    Nothing,
}

/// What the members said, and what follows.
///
/// One member that lies must not keep a spare: neither by letting it into a mesh of its own, nor by refusing it.
/// With three members or more in the ticket it takes two.
#[derive(Debug)]
struct Answers {
    last: Vec<Said>,
    needed: usize,
    /// How many are asked quickly: each one once after somebody said yes for the first time.
    hurry: usize,
}

impl Answers {
    fn new(members: usize) -> Self {
        Self {
            last: vec![Said::Nothing; members],
            needed: if members >= 3 { 2 } else { 1 },
            hurry: 0,
        }
    }

    /// Notes what a member said. No answer leaves a yes as it is: the member may only be busy.
    fn heard(&mut self, member: usize, said: Said) {
        self.hurry = self.hurry.saturating_sub(1);
        if said == Said::Yes && self.last.get(member) != Some(&Said::Yes) {
            self.hurry = self.last.len();
        }
        if let Some(last) = self.last.get_mut(member)
            && !(said == Said::Nothing && *last == Said::Yes)
        {
            *last = said;
        }
    }

    fn count(&self, said: Said) -> usize {
        self.last.iter().filter(|last| **last == said).count()
    }

    fn is_in(&self) -> bool {
        self.count(Said::Yes) >= self.needed
    }

    /// Whether asking again is of no use: some refuse, and nobody says otherwise.
    fn is_refused(&self) -> bool {
        self.count(Said::No) >= self.needed
            && self.count(Said::Yes) == 0
            && self.count(Said::NotNow) == 0
    }
}

/// What is told on standard error, and when.
#[derive(Debug, Default)]
struct Progress {
    told: String,
    told_us: u64,
}

impl Progress {
    /// The line to be told now, if there is one.
    fn line(&mut self, now_us: u64, answer: &str) -> Option<String> {
        let since = now_us.saturating_sub(self.told_us);
        let due = if answer == self.told {
            TELL_AGAIN_US
        } else {
            TELL_US
        };
        if self.told_us > 0 && since < due {
            return None;
        }
        answer.clone_into(&mut self.told);
        self.told_us = now_us;
        Some(format!("standby: {answer}"))
    }
}

/// Ctrl-C, or the end that a service manager asks for.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Asks the members that the ticket names, one after the other and again and again, with the same `request` each
/// time, until it is let in; returns that answer. Ends when the ticket does, or by a signal.
///
/// The request is made once because a ticket under which two different records were seen is void: a member that
/// lies could keep one until there is another.
///
/// # Errors
/// When the ticket ended, the members refuse, or somebody ended it; nothing is let in then as far as is known.
pub(super) async fn wait(
    ticket: &Ticket,
    expires_unix_us: u64,
    request: &[u8],
) -> Result<Vec<u8>, CliError> {
    let mut stop =
        Stop::new().map_err(|e| CliError::Failed(format!("cannot wait for signals: {e}")))?;
    note(&format!(
        "standby: asking {} members every few seconds whether somebody is missing, until {}; Ctrl-C ends it",
        ticket.addresses.len(),
        rfc3339(expires_unix_us)
    ));
    tokio::select! {
        answer = ask(ticket, expires_unix_us, request) => answer,
        () = stop.asked() => Err(CliError::Failed(
            "stopped: this server is not in the mesh, and the ticket can be used again".to_owned(),
        )),
    }
}

async fn ask(ticket: &Ticket, expires_unix_us: u64, request: &[u8]) -> Result<Vec<u8>, CliError> {
    let mut answers = Answers::new(ticket.addresses.len());
    let mut progress = Progress::default();
    let mut accepted = Vec::new();
    for (member, address) in ticket.addresses.iter().enumerate().cycle() {
        let now = SystemClock.unix_us();
        if now > expires_unix_us {
            return Err(CliError::Failed(format!(
                "the ticket ended {} ago, and nobody was missing until then; start again with a new one (secmesh invite --expires 30d)",
                span(now.saturating_sub(expires_unix_us))
            )));
        }
        // Where each member's key is known by its place, no other member can speak for it.
        let own = ticket.pins.get(member).map(std::slice::from_ref);
        let pins = own.filter(|_| ticket.pins.len() == ticket.addresses.len());
        let asked = transport::join(
            std::slice::from_ref(address),
            pins.unwrap_or(&ticket.pins),
            &ticket.seed,
            request,
        );
        let (said, words) = match asked.await {
            Err(error) => (Said::Nothing, error.to_string().replace('\n', " ")),
            Ok(reply) => match JoinReply::from_bytes(&reply) {
                Ok(JoinReply::Accepted { .. }) => {
                    let words = "lets this server in; asking another member".to_owned();
                    accepted = reply;
                    (Said::Yes, words)
                }
                Ok(JoinReply::Waiting { reason }) => (Said::NotNow, reason),
                Ok(JoinReply::Refused { reason }) => (Said::No, format!("refused: {reason}")),
                Err(error) => (Said::Nothing, format!("an answer that is none: {error}")),
            },
        };
        answers.heard(member, said);
        if answers.is_in() {
            return Ok(accepted);
        }
        let words = clean(&words);
        if answers.is_refused() {
            return Err(CliError::Failed(format!(
                "the mesh refuses this server ({address} says: {words})"
            )));
        }
        if let Some(line) = progress.line(now, &words) {
            note(&line);
        }
        let pause = if answers.hurry > 0 {
            AGREE
        } else {
            PAUSE.saturating_add(Duration::from_millis(entropy::below(JITTER_MS)?))
        };
        tokio::time::sleep(pause).await;
    }
    Err(transport::JoinError::NoAddress.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::mesh::identity::{TlsIdentity, ed25519_spki_sha256};
    use crate::mesh::ids::{MeshId, NodeId, TicketId};
    use crate::mesh::transport::{
        AllowedPeers, Carrier, PeerIdentity, Transport, TransportConfig, TransportEvent,
        TransportHandle,
    };

    fn after(members: usize, said: &[(usize, Said)]) -> Answers {
        let mut answers = Answers::new(members);
        for (member, said) in said {
            answers.heard(*member, *said);
        }
        answers
    }

    #[test]
    fn one_liar_of_three_neither_takes_nor_refuses_a_spare() {
        use Said::{No, NotNow, Nothing, Yes};
        for (members, said, is_in, refused) in [
            (1, vec![(0, Yes)], true, false),
            (2, vec![(1, Yes)], true, false),
            (3, vec![(0, Yes)], false, false),
            (3, vec![(0, Yes), (0, Yes)], false, false),
            (3, vec![(0, Yes), (1, Nothing), (2, Yes)], true, false),
            (
                3,
                vec![(0, Yes), (1, NotNow), (0, NotNow), (2, Yes)],
                false,
                false,
            ),
            (3, vec![(0, Yes), (0, Nothing), (2, Yes)], true, false),
            (8, vec![(0, No), (1, NotNow)], false, false),
            (8, vec![(0, No)], false, false),
            (8, vec![(0, No), (5, No)], false, true),
            (8, vec![(0, No), (5, No), (6, Yes)], false, false),
            (8, vec![(0, No), (5, No), (5, NotNow)], false, false),
            (2, vec![(0, No)], false, true),
            (1, vec![(0, NotNow)], false, false),
        ] {
            let answers = after(members, &said);
            assert_eq!(
                (answers.is_in(), answers.is_refused()),
                (is_in, refused),
                "{said:?}"
            );
        }
    }

    /// A member with TLS key `n` that lets in whoever has the ticket of this seed, and counts the times.
    fn credulous(n: u8, seed: [u8; 32]) -> (TransportHandle, tokio::sync::watch::Receiver<usize>) {
        let allowed = Arc::new(AllowedPeers::new());
        let public = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        allowed.insert(
            ed25519_spki_sha256(&public),
            PeerIdentity::Ticket(TicketId([1; 16])),
        );
        let (handle, mut events) = Transport::start(TransportConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            node: NodeId([n; 16]),
            tls: tls(n),
            mesh: MeshId([5; 32]),
            carrier: Carrier::Grpc,
            allowed,
            peers: Vec::new(),
            clock: Arc::new(SystemClock),
        })
        .unwrap();
        let (asked, times) = tokio::sync::watch::channel(0);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let TransportEvent::JoinRequest { reply, .. } = event {
                    let members = Vec::new();
                    let _ = reply.send(JoinReply::Accepted { members }.to_bytes());
                    asked.send_modify(|times| *times += 1);
                }
            }
        });
        (handle, times)
    }

    fn tls(n: u8) -> TlsIdentity {
        TlsIdentity::new(&SigningKey::from_bytes(&[n; 32])).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_member_is_not_two_also_where_it_answers_at_the_address_of_another() {
        let seed = [77; 32];
        let (liar, mut asked) = credulous(1, seed);
        let (honest, _) = credulous(2, seed);
        let ticket = |second: &TransportHandle| Ticket {
            genesis: Vec::new(),
            grant: Vec::new(),
            seed,
            addresses: [&liar, second, second]
                .iter()
                .map(|at| at.local_addr().to_string())
                .collect(),
            pins: [1, 2, 3].map(|n| tls(n).spki_sha256()).to_vec(),
        };
        let alone = ticket(&liar);
        // In the second round, and the two others were not found there in between.
        let second_round = async {
            asked.wait_for(|times| *times >= 2).await.unwrap();
            let refused = || -> u64 {
                let counters = liar.counters().into_iter();
                let refused = counters.filter(|(name, _)| name.starts_with("refused_"));
                refused.map(|(_, times)| times).sum()
            };
            while refused() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            answer = ask(&alone, u64::MAX, b"me") => panic!("one was enough: {answer:?}"),
            () = second_round => {}
        }
        let both = ticket(&honest);
        let answer = tokio::time::timeout(Duration::from_mins(1), ask(&both, u64::MAX, b"me"));
        answer.await.expect("two agree").unwrap();
        liar.shutdown().await;
        honest.shutdown().await;
    }

    #[test]
    fn a_single_yes_hurries_one_round() {
        let mut answers = Answers::new(3);
        answers.heard(0, Said::NotNow);
        assert_eq!(answers.hurry, 0);
        answers.heard(1, Said::Yes);
        for (member, said, left) in [
            (2, Said::NotNow, 2),
            (0, Said::NotNow, 1),
            (1, Said::Yes, 0),
            (2, Said::NotNow, 0),
        ] {
            answers.heard(member, said);
            assert_eq!(answers.hurry, left);
        }
    }

    #[test]
    fn what_is_told_is_bounded() {
        let mut progress = Progress::default();
        let s = 1_000_000;
        assert_eq!(progress.line(s, "a").as_deref(), Some("standby: a"));
        assert_eq!(progress.line(2 * s, "b"), None);
        assert_eq!(progress.line(11 * s, "b").as_deref(), Some("standby: b"));
        assert_eq!(progress.line(60 * s, "b"), None);
        assert_eq!(progress.line(611 * s, "b").as_deref(), Some("standby: b"));
    }
}
