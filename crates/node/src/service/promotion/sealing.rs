//! The stream of a service from when its old primary is gone until there is another: sealed with the new term's epoch, so that nothing is added to what
//! the older terms acknowledged; then watched until somebody has read all of it. Part of the failure walk.
//! Deliberately absent: who is chosen, and what time may change about it (`health::decide`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Consistency, Name, StreamError, Waits};
use health::decide::{Holder, Phase, Record, Sealed, Step, Stream, View};
use model::{Epoch, EventKind, ServiceName};

use super::{Promotion, RETRY_PAUSE};
use crate::Input;
use crate::service::Service;
use crate::shell::{Shell, Subject};

/// Between two looks at the cursors: at first so long, then an eighth of the time that was waited, at most the other.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// What is known of the stream for the term that is about to begin.
#[derive(Debug)]
pub(super) struct Sealing {
    epoch: Epoch,
    stream: String,
    since: Instant,
    /// Where the older terms' entries end, once it is sealed.
    end: Option<u64>,
    /// How far each process had read when it was looked at. A process that came later has to be looked at anew.
    cursors: Vec<(Holder, u64)>,
    asking: bool,
    /// Nothing is to be looked at: nobody is ready, or somebody is being promoted.
    pub(super) idle: bool,
    not_before: Instant,
    /// Why it could not be sealed or looked at last.
    trouble: Option<String>,
    /// That the promotion waits has been said.
    said: bool,
}

/// What a look at a stream found.
#[derive(Debug)]
pub struct Seen {
    end: u64,
    cursors: Vec<(Holder, u64)>,
}

impl Sealing {
    fn new(epoch: Epoch, stream: &str, now: Instant) -> Self {
        Self {
            epoch,
            stream: stream.to_owned(),
            since: now,
            end: None,
            cursors: Vec::new(),
            asking: false,
            idle: false,
            not_before: now,
            trouble: None,
            said: false,
        }
    }

    /// When there is something to do about it, apart from inputs.
    pub(super) fn next_look(&self) -> Option<Instant> {
        (!self.asking && !self.idle).then_some(self.not_before)
    }

    fn sealed(&self) -> Option<Sealed> {
        Some(Sealed { stream: self.stream.clone(), end: self.end? })
    }

    /// Why nobody is primary yet, in one line.
    pub(super) fn note(&self) -> String {
        match (self.end, &self.trouble) {
            (None, Some(trouble)) => format!("the stream {} cannot be sealed: {trouble}", self.stream),
            (None, None) => format!("the stream {} is being sealed", self.stream),
            (Some(end), _) => {
                format!("waits for somebody to read the stream {} up to offset {end}: {}", self.stream, self.gaps(end))
            }
        }
    }

    fn gaps(&self, end: u64) -> String {
        let gap = |(holder, cursor): &(Holder, u64)| match end.saturating_sub(*cursor) {
            0 => format!("{} has everything", holder.instance),
            missing => format!("{} has read up to {cursor}, {missing} entries are missing", holder.instance),
        };
        let gaps: Vec<String> = self.cursors.iter().map(gap).collect();
        if gaps.is_empty() { "no instance is ready".to_owned() } else { gaps.join("; ") }
    }
}

impl Promotion {
    /// Where the stream was sealed for the term of the committed primary.
    pub fn sealed(&self) -> Option<&Sealed> {
        self.record.as_ref().filter(|(record, _)| record.phase == Phase::Primary)?.0.sealed.as_ref()
    }

    /// Why nobody is primary yet, if that is for the stream's sake.
    pub fn waits_for_stream(&self) -> Option<String> {
        self.sealing.as_ref().map(Sealing::note)
    }
}

impl Service {
    /// What the decision may know of the stream. Only who decides looks at it, and only once the old primary is gone.
    pub(super) fn stream_for_decision(&mut self, decides: bool, views: &mut [View], now: Instant) -> Stream {
        let (wanted, catch_up) = match &self.definition.stream {
            Some(stream) => (&stream.name, stream.catch_up),
            None => return self.forget_sealing(),
        };
        let Some(promotion) = &mut self.promotion else { return Stream::None };
        let phase = promotion.record.as_ref().map(|(record, _)| record.phase);
        let Some(epoch) = promotion.epoch().filter(|_| decides && phase.is_some_and(|phase| phase != Phase::Primary))
        else {
            promotion.sealing = None;
            return Stream::Open;
        };
        promotion.sealing.take_if(|known| known.epoch != epoch || known.stream != *wanted);
        if phase == Some(Phase::Fence) {
            return Stream::Open;
        }
        let sealing = promotion.sealing.get_or_insert_with(|| Sealing::new(epoch, wanted, now));
        for view in views {
            let known = sealing.cursors.iter().find(|(holder, _)| *holder == view.holder);
            view.cursor = known.map_or(0, |(_, cursor)| *cursor);
        }
        let overdue = now.saturating_duration_since(sealing.since) >= catch_up;
        sealing.end.map_or(Stream::Open, |end| Stream::Sealed { end, overdue })
    }

    /// The old primary is no more, and that is being committed: its stream is sealed meanwhile.
    pub(super) fn begin_sealing(&mut self, shell: &Shell, views: &[View], now: Instant) {
        let Some((promotion, stream)) = self.promotion.as_mut().zip(self.definition.stream.as_ref()) else { return };
        let Some(epoch) = promotion.epoch() else { return };
        let sealing = promotion.sealing.get_or_insert_with(|| Sealing::new(epoch, &stream.name, now));
        // It is looked at again only once the commit has been read.
        sealing.idle = true;
        self.look_at_stream(shell, views, now);
    }

    /// What of other streams waits for a promotion: what is under way goes on where the service's own would stand behind it.
    pub(super) fn waiting_streams(&self) -> Waits {
        if self.definition.stream.is_some() { Waits::Coming } else { Waits::UnderWay }
    }

    fn forget_sealing(&mut self) -> Stream {
        if let Some(promotion) = &mut self.promotion {
            promotion.sealing = None;
        }
        Stream::None
    }

    /// The record of a primary, with the offset at which the older terms end.
    pub(super) fn with_stream(&self, record: Record) -> Record {
        let sealing = self.promotion.as_ref().and_then(|promotion| promotion.sealing.as_ref());
        Record { sealed: sealing.and_then(Sealing::sealed), ..record }
    }

    /// Seals the stream, which may be done any number of times, and looks how far everybody has read it.
    pub(super) fn look_at_stream(&mut self, shell: &Shell, views: &[View], now: Instant) {
        let service = self.name.clone();
        let Some(sealing) = self.promotion.as_mut().and_then(|promotion| promotion.sealing.as_mut()) else { return };
        if sealing.asking || sealing.not_before > now {
            return;
        }
        sealing.asking = true;
        let (streams, epoch, end) = (Arc::clone(&shell.streams), sealing.epoch, sealing.end);
        let name = sealing.stream.clone();
        // Named before they are asked about: whoever is ready by now has said how far it is.
        let ready = views.iter().filter(|view| view.alive && view.ready).map(|view| view.holder.clone());
        let ready: Vec<Holder> = ready.collect();
        shell.spawn(async move {
            let looked = async {
                let stream = Name::new(&name)?;
                let end = match end {
                    Some(end) => end,
                    None => streams.seal(stream.clone(), epoch.0).await?,
                };
                let cursors = streams.describe(stream, Consistency::Linearizable).await?.cursors;
                let cursor = |holder: Holder| {
                    let known = Name::new(holder.instance.as_str()).ok().and_then(|name| cursors.get(&name).copied());
                    (holder, known.unwrap_or(0))
                };
                Ok(Seen { end, cursors: ready.into_iter().map(cursor).collect() })
            };
            let result = looked.await;
            Input::StreamSeen { service, epoch, stream: name, result }
        });
    }

    /// What [`Service::look_at_stream`] has found.
    pub fn stream_seen(
        &mut self,
        shell: &Shell,
        (epoch, stream): (Epoch, &str),
        result: Result<Seen, StreamError>,
        now: Instant,
    ) {
        let sealing = self.promotion.as_mut().and_then(|promotion| promotion.sealing.as_mut());
        // The definition may have got another stream meanwhile.
        let Some(sealing) = sealing.filter(|sealing| sealing.epoch == epoch && sealing.stream == stream) else {
            return;
        };
        sealing.asking = false;
        match result {
            Ok(seen) => {
                (sealing.end, sealing.cursors, sealing.trouble) = (Some(seen.end), seen.cursors, None);
                let waited = now.saturating_duration_since(sealing.since);
                sealing.not_before = now + (waited / 8).clamp(LOOKS.0, LOOKS.1);
            }
            Err(error) => {
                if sealing.trouble.is_none() {
                    tracing::warn!(service = %self.name, stream = sealing.stream, %error, "the stream cannot be sealed or looked at for a promotion; trying again");
                }
                (sealing.trouble, sealing.not_before) = (Some(error.to_string()), now + RETRY_PAUSE);
            }
        }
        self.step_promotion(shell, now);
    }

    /// Says once in a term, after `catchUp`, that the promotion waits for the stream, or that the wanted one was passed over.
    pub(super) fn say_behind(&mut self, shell: &Shell, step: &Step, now: Instant) {
        let (name, catch_up) = match &self.definition.stream {
            Some(stream) => (self.name.clone(), stream.catch_up),
            None => return,
        };
        let Some(promotion) = &mut self.promotion else { return };
        let wanted = promotion.record.as_ref().and_then(|(record, _)| record.wanted.clone());
        let Some(sealing) = promotion.sealing.as_mut() else { return };
        if sealing.said || now.saturating_duration_since(sealing.since) < catch_up {
            return;
        }
        let what = match step {
            Step::Seal | Step::AwaitEntries(_) => waiting(&name, sealing),
            Step::Promote(taken) if wanted.as_ref().is_some_and(|wanted| *wanted != taken.instance) => {
                let wanted = wanted.map(|wanted| wanted.to_string()).unwrap_or_default();
                format!(
                    "{wanted} does not become primary of {name}, {} does: in {} s it has not read the stream {} up to offset {}: {}",
                    taken.instance,
                    catch_up.as_secs_f32(),
                    sealing.stream,
                    sealing.end.unwrap_or_default(),
                    sealing.gaps(sealing.end.unwrap_or_default()),
                )
            }
            _ => return,
        };
        sealing.said = true;
        let (subject, cause) = (Subject::service(&name).epoch(sealing.epoch), promotion.cause.clone());
        shell.emit(EventKind::PromoteBehind, subject, &cause, what);
    }
}

fn waiting(service: &ServiceName, sealing: &Sealing) -> String {
    let Some(end) = sealing.end else { return format!("{service} has no primary: {}", sealing.note()) };
    format!(
        "nobody has read the stream {} of {service} up to offset {end}, so nobody is promoted: {}; whoever gets there first is. Is it stuck? `seawall logs {service}`; end its process, or, if those entries may be missing: `seawall stream cursor {} INSTANCE {end}`",
        sealing.stream,
        sealing.gaps(end),
        sealing.stream,
    )
}
