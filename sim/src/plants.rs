//! Bugs that are planted to see that they are found: each is what a hasty change to the product could do. Those at the
//! seams are in this crate; the others are in the product's code behind `planted("name")`, which only a build with the
//! feature `planted` knows, and only within a simulated world.

macro_rules! plants {
    ($($plant:ident = $name:literal, $what:literal;)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Plant {
            $(#[doc = $what] $plant,)*
        }

        impl Plant {
            /// All of them.
            pub const ALL: &'static [Plant] = &[$(Plant::$plant,)*];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Plant::$plant => $name,)* }
            }

            /// What it does.
            pub fn what(self) -> &'static str {
                match self { $(Plant::$plant => $what,)* }
            }
        }
    };
}

plants! {
    AckBeforeSync = "ack-before-sync", "the disk says that the log is flushed and has not begun to";
    VoteBeforeSync = "vote-before-sync", "a vote is given before the superblock that holds it is flushed";
    SkippedDirectorySync = "skipped-directory-sync", "the directory of a new segment is not flushed";
    PromoteBeforeFenced = "promote-before-fenced", "a primary that hangs is replaced before its end is confirmed";
    PromoteWithoutQuorum = "promote-without-quorum", "a node that hears of nobody else makes its own process primary";
    DeadlineIgnored = "deadline-ignored", "a keeper lets a primary live that its node cannot vouch for";
    DeadlineFromAnswer = "deadline-from-answer", "a deadline counts from when the answer came, and is a little generous";
    PromotedTooLate = "promoted-too-late", "a node that was away tells its process that it is primary, though its time is over";
    VouchedUnread = "vouched-unread", "a node takes its processes to stand under its newest lease, before it has read that they do";
    MidLogTruncation = "mid-log-truncation", "recovery cuts the log at the first invalid record, whatever follows";
    TailNotWrittenAgain = "tail-not-written-again", "recovery trusts what it reads after a flush that failed";
    RetriedFlush = "retried-flush", "a failed flush is tried again, and counts when that succeeds";
    TruncationNotWritten = "truncation-not-written", "a follower drops entries from memory and not from its log";
    RemovalsInAnyOrder = "removals-in-any-order", "old segments are removed without flushing the directory between";
    SnapshotBeforeSync = "snapshot-before-sync", "a snapshot counts before it is flushed, and the log behind it goes";
    SnapshotForgetsAnEntry = "snapshot-forgets-an-entry", "a snapshot says that it ends one entry before it does";
    ClockInsideApply = "clock-inside-apply", "a replica looks at its own clock when it applies the end of a lease";
    ExpiryUntold = "expiry-untold", "watches are not told what goes with a lease";
    StaleRead = "stale-read", "a leader answers reads without asking whether it still leads";
    KeepAliveWithoutQuorum = "keep-alive-without-quorum", "a leader keeps leases alive without asking whether it still leads";
    StaleLease = "stale-lease", "a new leader goes on with its own clock of leases instead of renewing them all";
    LeadNotLookedAt = "lead-not-looked-at", "who leads again ends leases by the clock it had when it led before";
    WriteMadeTwice = "write-made-twice", "a write whose answer was lost is made again";
    WitnessSnapshot = "witness-snapshot", "a witness drops its log as it likes, and sends snapshots of the state that it does not have";
    ConfirmedBySome = "confirmed-by-some", "without a quorum a primary goes on by the word of any other voter, whatever that one holds for true";
    LostAnswerTakenForRefusal = "lost-answer-taken-for-refusal", "a write whose answer was lost is said not to be done";
}

impl Plant {
    /// It is in the product's code, and needs a build that knows it.
    pub fn is_inside(self) -> bool {
        self >= Self::MidLogTruncation
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|plant| plant.name() == name)
    }
}
