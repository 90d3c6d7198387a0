//! What must hold in every world, one promise a file. Each is told what can be seen from outside and says what is wrong.

use crate::judge::Invariant;

mod acked_writes_survive;
mod epochs_only_grow;
mod leases_end_by_commit;
mod linearizable_reads;
mod one_leader_per_term;
mod one_primary_at_a_time;
mod panics_never;
mod recovers_after_faults;
mod replicas_agree;
mod stored_opens_again;
mod terms_only_grow;
mod watches_miss_nothing;
mod writes_happen_once;

/// All of them.
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<acked_writes_survive::AckedWritesSurvive>::default(),
        Box::<writes_happen_once::WritesHappenOnce>::default(),
        Box::<linearizable_reads::LinearizableReads>::default(),
        Box::<replicas_agree::ReplicasAgree>::default(),
        Box::<watches_miss_nothing::WatchesMissNothing>::default(),
        Box::<one_leader_per_term::OneLeaderPerTerm>::default(),
        Box::<terms_only_grow::TermsOnlyGrow>::default(),
        Box::<leases_end_by_commit::LeasesEndByCommit>::default(),
        Box::<stored_opens_again::StoredOpensAgain>::default(),
        Box::<recovers_after_faults::RecoversAfterFaults>::default(),
        Box::<one_primary_at_a_time::OnePrimaryAtATime>::default(),
        Box::<epochs_only_grow::EpochsOnlyGrow>::default(),
        Box::<panics_never::PanicsNever>::default(),
    ]
}
