//! Reads what happened, and says whether it was allowed. Pure: evidence in, verdict out.
//!
//! Lost is what was produced and had no effect, unless it was made so that it never succeeds: that must have been given up, without an
//! effect. Doubled is every effect of a message beyond its first. One is *explained* only by a cause that the level allows:
//!
//! - the claim of one of the two ran out, which its member was hindered to prevent: it was killed, stopped, starved by the machine, or cut
//!   off from the store, at the time between claim and settle; the second claim came a whole lease after the first one's last renewal;
//! - level L0 only: the store was emptied between the two claims.
//!
//! Level L2 explains nothing: effect and memory are in one transaction, and every doubled effect is refused.
//!
//! A second claim although the store had acknowledged the success is never explained but by an emptied store.
//!
//! An inbox also keeps the order of each key: effects in the order in which the database took them must be in the order of their offsets. What
//! waits to be tried again holds up what comes behind it, so there is no exception. And it holds each message once, whatever was produced again.
//!
//! An inbox at level L1 keeps the order of the *first* effects of each key's messages. One that comes again comes late: its first owner was stopped in it, say, and
//! went on when others had done it and what is behind it. Each such effect is a doubled one, and needs its cause.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Microseconds since 1970.
pub type Time = u64;
/// Processes are told apart by their ids.
pub type Pid = u32;

/// A row of the effects table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    pub id: String,
    pub key: String,
    pub fence: u64,
    pub pid: Pid,
    pub at: Time,
    /// The message's record key. All messages of one are in one partition where order is judged.
    pub lane: String,
    pub offset: i64,
    /// The how manyeth row of the table it is, as the database counts.
    pub nth: u64,
}

/// A line of a member's journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub at: Time,
    pub pid: Pid,
    pub entry: Entry,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Claimed { key: String, fence: u64, asked: Time },
    Extended { key: String, fence: u64, asked: Time },
    Settled { key: String, fence: u64, success: bool, dead: bool },
    Dead { key: String },
    Stalled { since: Time },
}

/// What the harness did, or had done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub from: Time,
    pub to: Time,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Killed(Pid),
    Paused(Pid),
    /// Trouble between this process and the store.
    StoreLink(Pid),
    StoreDown,
    /// At one moment, while it was down.
    StoreEmptied,
}

/// What an inbox holds at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Messages that were ever accepted.
    pub accepted: usize,
    /// Those that are neither done nor dead.
    pub open: usize,
}

#[derive(Debug, Default)]
pub struct Evidence {
    /// Ids acknowledged by the broker.
    pub produced: BTreeSet<String>,
    /// Those of them that never succeed.
    pub hopeless: BTreeSet<String>,
    /// Ids of dead letters, where there is a topic for them.
    pub letters: Option<BTreeSet<String>>,
    pub effects: Vec<Effect>,
    pub lines: Vec<Line>,
    pub faults: Vec<Fault>,
    /// Level L2: there are no claims, and no journal of them.
    pub transactional: bool,
    /// Where messages were stored first, and worked by key.
    pub inbox: Option<Stored>,
    /// In microseconds.
    pub lease: Time,
    /// The store is a file that one process writes at a time: whoever is paused in the middle of that stops all.
    pub one_writer: bool,
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub distinct: usize,
    pub effects: usize,
    pub dead: usize,
    pub doubled: usize,
    pub explained: usize,
    /// Longest time without any effect, in microseconds.
    pub max_stall: Time,
    /// Produced, and nothing came of them.
    pub lost: Vec<String>,
    /// Effects behind that of a later message of their key.
    pub out_of_order: usize,
    /// How often which cause explained a doubled effect.
    pub causes: BTreeMap<&'static str, usize>,
    /// What is wrong beyond losses, in words.
    pub wrong: Vec<String>,
}

impl Verdict {
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.wrong.is_empty() && self.doubled == self.explained
    }
}

/// Clocks of database and machine are one; their rounding is not.
const TOLERANCE: Time = 100_000;
/// Between the effect and its settle there is next to nothing: what hinders a member later than this explains nothing.
const SETTLED_WITHIN: Time = 5_000_000;
/// Shown at most.
const SHOWN: usize = 10;

pub fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict =
        Verdict { distinct: evidence.produced.len(), effects: evidence.effects.len(), ..Verdict::default() };
    let history = History::of(evidence);
    let mut by_id: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
    for effect in &evidence.effects {
        by_id.entry(&effect.id).or_default().push(effect);
    }
    for id in by_id.keys().filter(|id| !evidence.produced.contains(**id)) {
        verdict.wrong.push(format!("an effect of {id}, which nobody produced"));
    }
    for id in &evidence.produced {
        let hopeless = evidence.hopeless.contains(id);
        match (hopeless, by_id.contains_key(id.as_str())) {
            (true, true) => verdict.wrong.push(format!("an effect of {id}, which never succeeds")),
            (false, false) => verdict.lost.push(id.clone()),
            _ => {}
        }
    }
    count_the_dead(evidence, &history, &mut verdict);
    for (id, effects) in &mut by_id {
        effects.sort_by_key(|effect| effect.at);
        for pair in effects.windows(2) {
            verdict.doubled += 1;
            if evidence.transactional {
                let why = "although effect and memory commit together";
                verdict.wrong.push(format!("{id} twice, {why}\n{}", history.tell(pair)));
                continue;
            }
            match history.explain(pair[0], pair[1]) {
                Ok(cause) => {
                    verdict.explained += 1;
                    *verdict.causes.entry(cause).or_default() += 1;
                }
                Err(why) => verdict.wrong.push(format!("{id} twice: {why}\n{}", history.tell(pair))),
            }
        }
    }
    if let Some(stored) = &evidence.inbox {
        look_into_the_inbox(evidence, stored, &mut verdict);
    }
    verdict.max_stall = max_stall(&evidence.effects);
    verdict
}

fn look_into_the_inbox(evidence: &Evidence, stored: &Stored, verdict: &mut Verdict) {
    if stored.accepted != evidence.produced.len() {
        verdict.wrong.push(format!(
            "{} messages were produced, and the inbox has accepted {}",
            evidence.produced.len(),
            stored.accepted
        ));
    }
    if stored.open > 0 {
        verdict.wrong.push(format!("{} messages are still open", stored.open));
    }
    let mut lanes: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
    let mut firsts: HashMap<&str, &Effect> = HashMap::new();
    for effect in &evidence.effects {
        let first = firsts.entry(&effect.id).or_insert(effect);
        if effect.nth < first.nth {
            *first = effect;
        }
    }
    for effect in &evidence.effects {
        if evidence.transactional || firsts.get(effect.id.as_str()).is_some_and(|first| first.nth == effect.nth) {
            lanes.entry(&effect.lane).or_default().push(effect);
        }
    }
    for (lane, mut effects) in lanes {
        effects.sort_by_key(|effect| effect.nth);
        let Some(mut furthest) = effects.first().copied() else { continue };
        for effect in effects {
            if effect.offset >= furthest.offset {
                furthest = effect;
                continue;
            }
            verdict.out_of_order += 1;
            verdict.wrong.push(format!(
                "{} of {lane} at offset {} behind {} at offset {}: rows {} and {}, processes {} and {}, {} µs apart",
                effect.id,
                effect.offset,
                furthest.id,
                furthest.offset,
                effect.nth,
                furthest.nth,
                effect.pid,
                furthest.pid,
                effect.at.abs_diff(furthest.at)
            ));
        }
    }
}

/// As many keys are dead as messages never succeed: keys are digests, and do not say of which message. At level L2, and in an inbox, the letters alone say so.
fn count_the_dead(evidence: &Evidence, history: &History<'_>, verdict: &mut Verdict) {
    let letters = evidence.letters.as_ref().map_or(0, BTreeSet::len);
    verdict.dead = if evidence.transactional || evidence.inbox.is_some() { letters } else { history.dead.len() };
    if verdict.dead != evidence.hopeless.len() {
        verdict.wrong.push(format!(
            "{} messages never succeed, but {} are dead",
            evidence.hopeless.len(),
            verdict.dead
        ));
    }
    if let Some(letters) = &evidence.letters {
        for id in evidence.hopeless.difference(letters) {
            verdict.lost.push(id.clone());
        }
        for id in letters.difference(&evidence.hopeless) {
            verdict.wrong.push(format!("a dead letter of {id}, which can succeed"));
        }
    }
}

fn max_stall(effects: &[Effect]) -> Time {
    let mut times: Vec<Time> = effects.iter().map(|effect| effect.at).collect();
    times.sort_unstable();
    times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or(0)
}

/// One claim: a process, a key and a fence. Asking again gives the same claim.
#[derive(Debug)]
struct Claim {
    /// How often the store had been emptied before: then fences begin anew.
    era: usize,
    pid: Pid,
    fence: u64,
    asked: Time,
    granted: Time,
    /// When its lease was renewed: (asked, answered).
    renewed: Vec<(Time, Time)>,
    /// When it was settled, and whether as succeeded.
    settled: Vec<(Time, bool)>,
}

struct History<'a> {
    evidence: &'a Evidence,
    claims: HashMap<&'a str, Vec<Claim>>,
    dead: HashSet<&'a str>,
}

impl<'a> History<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let mut lines: Vec<&Line> = evidence.lines.iter().collect();
        lines.sort_by_key(|line| line.at);
        let mut claims: HashMap<&str, Vec<Claim>> = HashMap::new();
        let mut dead = HashSet::new();
        let emptied = evidence.faults.iter().filter(|fault| fault.what == What::StoreEmptied);
        let emptied: Vec<Time> = emptied.map(|fault| fault.from).collect();
        for line in lines {
            let era = emptied.iter().filter(|time| **time < line.at).count();
            match &line.entry {
                Entry::Claimed { key, fence, asked } => {
                    let of_key = claims.entry(key).or_default();
                    match find(of_key, line.pid, *fence).filter(|same| same.era == era) {
                        Some(same) => same.renewed.push((*asked, line.at)),
                        None => of_key.push(Claim {
                            era,
                            pid: line.pid,
                            fence: *fence,
                            asked: *asked,
                            granted: line.at,
                            renewed: vec![(*asked, line.at)],
                            settled: Vec::new(),
                        }),
                    }
                }
                Entry::Extended { key, fence, asked } => {
                    if let Some(claim) = claims.get_mut(key.as_str()).and_then(|all| find(all, line.pid, *fence)) {
                        claim.renewed.push((*asked, line.at));
                    }
                }
                Entry::Settled { key, fence, success, dead: given_up } => {
                    if *given_up {
                        dead.insert(key.as_str());
                    }
                    if let Some(claim) = claims.get_mut(key.as_str()).and_then(|all| find(all, line.pid, *fence)) {
                        claim.settled.push((line.at, *success));
                    }
                }
                Entry::Dead { key } => _ = dead.insert(key.as_str()),
                Entry::Stalled { .. } => {}
            }
        }
        Self { evidence, claims, dead }
    }

    fn claim_of(&self, effect: &Effect) -> Option<&Claim> {
        // After an emptied store a process may hold the same fence again: the one granted last before the effect.
        let of_key = self.claims.get(effect.key.as_str())?;
        let own = |claim: &&Claim| claim.pid == effect.pid && claim.fence == effect.fence;
        of_key.iter().filter(own).rfind(|claim| claim.granted <= effect.at + TOLERANCE)
    }

    /// Which cause allowed the second effect, or why none did.
    fn explain(&self, first: &Effect, second: &Effect) -> Result<&'static str, String> {
        let both = (self.claim_of(first), self.claim_of(second));
        let (Some(mut a), Some(mut b)) = both else { return Err("without a claim in any journal".into()) };
        let mut effect_of_a = first;
        if a.granted > b.granted {
            // The first effect was that of the second claim: the other one came late.
            (a, b) = (b, a);
            effect_of_a = second;
        }
        if a.era < b.era {
            return Ok("forgotten");
        }
        let same = a.granted == b.granted && a.pid == b.pid;
        let before = if same { second.at } else { b.asked };
        let of_key = self.claims.get(first.key.as_str()).map_or(&[][..], Vec::as_slice);
        let succeeded = of_key.iter().filter(|claim| claim.era == b.era).flat_map(|claim| &claim.settled);
        if let Some((at, _)) = succeeded.into_iter().find(|(at, success)| *success && *at < before) {
            return Err(format!("again although the store had acknowledged its success at {at}"));
        }
        if same {
            let hindrance = self.hindrance(a, a.asked, second.at, first.at);
            return hindrance.ok_or_else(|| "twice under one claim, and nothing hindered its member".into());
        }
        let hindrance = self.hindrance(a, a.asked, b.granted, effect_of_a.at);
        if a.settled.iter().any(|(at, _)| *at < b.granted) {
            return hindrance.ok_or_else(|| "given back after its effect, and nothing hindered its member".into());
        }
        let renewed = a.renewed.iter().filter(|(_, answered)| *answered <= b.granted).map(|(asked, _)| *asked).max();
        let runs_until = renewed.unwrap_or(a.asked) + self.evidence.lease;
        if b.granted + TOLERANCE < runs_until {
            return Err(format!("taken over at {}, and the lease ran until {runs_until}", b.granted));
        }
        hindrance.ok_or_else(|| "its lease ran out, and nothing hindered its member from renewing it".into())
    }

    /// What hindered the member of `claim` in this time, beginning no later than shortly after its effect.
    fn hindrance(&self, claim: &Claim, from: Time, to: Time, effect: Time) -> Option<&'static str> {
        let touches = |began: Time, ended: Time| ended >= from && began <= to && began <= effect + SETTLED_WITHIN;
        let fault = |what: &dyn Fn(What) -> bool| {
            self.evidence.faults.iter().any(|fault| what(fault.what) && touches(fault.from, fault.to))
        };
        let stalled = |line: &Line| matches!(line.entry, Entry::Stalled { since } if line.pid == claim.pid && touches(since, line.at));
        if fault(&|what| what == What::Killed(claim.pid)) {
            Some("killed")
        } else if fault(&|what| what == What::Paused(claim.pid)) {
            Some("paused")
        } else if fault(&|what| what == What::StoreLink(claim.pid)) {
            Some("cut off")
        } else if fault(&|what| what == What::StoreDown) {
            Some("store down")
        } else if self.evidence.lines.iter().any(stalled) {
            Some("starved")
        } else if self.evidence.faults.iter().any(|fault| touches(fault.from, fault.to) && self.stops_all(fault)) {
            Some("locked out")
        } else {
            None
        }
    }

    /// Whether somebody was paused who had the store's only lock: nobody wrote meanwhile.
    fn stops_all(&self, fault: &Fault) -> bool {
        let meanwhile = fault.from + 2 * TOLERANCE..fault.to;
        let wrote = |line: &Line| meanwhile.contains(&line.at) && !matches!(line.entry, Entry::Stalled { .. });
        let length = fault.to.saturating_sub(fault.from);
        self.evidence.one_writer
            && matches!(fault.what, What::Paused(_))
            && length >= self.evidence.lease
            && !self.evidence.lines.iter().any(wrote)
    }

    /// Everything that is known of the message with these effects, by time.
    fn tell(&self, effects: &[&Effect]) -> String {
        let Some(key) = effects.first().map(|effect| &effect.key) else { return String::new() };
        let about = |entry: &Entry| match entry {
            Entry::Claimed { key: own, .. }
            | Entry::Extended { key: own, .. }
            | Entry::Settled { key: own, .. }
            | Entry::Dead { key: own } => own == key,
            Entry::Stalled { .. } => false,
        };
        let mut told: Vec<(Time, String)> = Vec::new();
        for effect in effects {
            told.push((effect.at, format!("effect pid={} fence={}", effect.pid, effect.fence)));
        }
        for line in self.evidence.lines.iter().filter(|line| about(&line.entry)) {
            told.push((line.at, format!("pid={} {:?}", line.pid, line.entry)));
        }
        let (from, to) = (told.iter().map(|(at, _)| *at).min(), told.iter().map(|(at, _)| *at).max());
        for fault in &self.evidence.faults {
            if Some(fault.to) >= from && Some(fault.from) <= to {
                told.push((fault.from, format!("{:?} until {}", fault.what, fault.to)));
            }
        }
        told.sort();
        told.iter().map(|(at, what)| format!("    {at} {what}\n")).collect()
    }
}

fn find(claims: &mut [Claim], pid: Pid, fence: u64) -> Option<&mut Claim> {
    claims.iter_mut().rfind(|claim| claim.pid == pid && claim.fence == fence)
}

/// The verdict in words, cut short.
pub fn complaints(verdict: &Verdict) -> String {
    let mut text = String::new();
    for (what, all) in [("lost", &verdict.lost), ("wrong", &verdict.wrong)] {
        for one in all.iter().take(SHOWN) {
            text.push_str(&format!("{what}: {one}\n"));
        }
        if all.len() > SHOWN {
            text.push_str(&format!("{what}: and {} more\n", all.len() - SHOWN));
        }
    }
    text
}

/// Reads a journal; what a kill cut short at its end is passed over.
pub fn read_journal(pid: Pid, text: &str) -> Vec<Line> {
    text.lines()
        .filter_map(|line| Some(Line { at: line.split(' ').next()?.parse().ok()?, pid, entry: entry(line)? }))
        .collect()
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split(' ').skip(1);
    let kind = words.next()?;
    let rest: Vec<&str> = words.collect();
    let named = |name: &str| -> Option<u64> {
        rest.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let key = || rest.first().map(|key| (*key).to_owned());
    match kind {
        "claimed" => Some(Entry::Claimed { key: key()?, fence: named("fence")?, asked: named("asked")? }),
        "extended" => Some(Entry::Extended { key: key()?, fence: named("fence")?, asked: named("asked")? }),
        "settled" => {
            let (verdict, outcome) = (*rest.get(2)?, *rest.get(3)?);
            let refused = outcome == "Refused";
            Some(Entry::Settled {
                key: key()?,
                fence: named("fence")?,
                success: verdict == "succeeded" && !refused,
                dead: (verdict == "dead" || outcome == "Buried") && !refused,
            })
        }
        "dead" => Some(Entry::Dead { key: key()? }),
        "stalled" => Some(Entry::Stalled { since: named("since")? }),
        _ => None,
    }
}
