//! A linearizable read sees everything that anybody had been told of before it was asked, and what it sees is what the
//! one history says of that moment.

use bytes::Bytes;

use crate::judge::{History, Invariant, Observation, Span, Written};

/// Reads, to be held against the whole history at the end.
#[derive(Default)]
pub struct LinearizableReads {
    reads: Vec<Seen>,
}

/// A key, the revision it was read at, and what it held: a value and when that was written.
type Seen = (String, u64, Option<(Bytes, u64)>);

fn not_old(what: &str, revision: u64, span: &Span) -> Result<(), String> {
    if revision < span.floor {
        return Err(format!("{what} at revision {revision}, and somebody had been told of {} before", span.floor));
    }
    Ok(())
}

impl Invariant for LinearizableReads {
    fn name(&self) -> &'static str {
        "linearizable_reads"
    }

    fn look(&mut self, seen: &Observation, history: &History) -> Result<(), String> {
        match seen {
            Observation::Read { span, key, revision, found } => {
                self.reads.push((key.clone(), *revision, found.clone()));
                not_old(&format!("{key} was read"), *revision, span)
            }
            Observation::Wrote { span, key, outcome: Written::At(revision), .. } => {
                if *revision == span.floor {
                    return Err(format!("{key} was written at revision {revision}, which was told of before"));
                }
                not_old(&format!("{key} was written"), *revision, span)
            }
            Observation::Wrote { span, key, outcome: Written::Rejected(revision), .. } => {
                not_old(&format!("{key} was compared"), *revision, span)
            }
            Observation::Over => {
                for (key, revision, found) in &self.reads {
                    let Some((at, change)) = history.value_at(key, *revision) else {
                        if found.is_some() && history.changes.keys().next().is_some_and(|first| first <= revision) {
                            return Err(format!("{key} was read as {found:?} at {revision}, and nobody wrote it"));
                        }
                        continue;
                    };
                    let expected = change.value.as_ref().map(|value| (value.clone(), at));
                    if *found != expected {
                        return Err(format!("{key} was read as {found:?} at revision {revision}: it was {expected:?}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
