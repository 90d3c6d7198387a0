//! What the controller makes of a word on the lease: deadlines for primaries, and an event when they begin to go on without
//! a quorum, and when that is over (`cluster.failsafe`; `lease.rs` asks).

use std::time::Duration;

use data::LeaseId;
use model::EventKind;

use crate::controller::Controller;
use crate::shell::Subject;

impl Controller {
    /// The lease was renewed.
    pub(crate) fn lease_renewed(&mut self, lease: Option<LeaseId>, until: Duration) {
        self.lease_good_until(lease, until);
        self.lease_error = None;
        if std::mem::take(&mut self.failsafe) {
            self.say(EventKind::FailsafeEnded, "there is a quorum again: the lease was renewed".into());
        }
    }

    /// It was not, and every other voter lets it go on.
    pub(crate) fn lease_kept(&mut self, lease: Option<LeaseId>, until: Duration, error: &str) {
        self.lease_good_until(lease, until);
        self.lease_error = Some(format!("{error}; primaries go on, as every other voter agrees"));
        if !std::mem::replace(&mut self.failsafe, true) {
            let message = format!("{error}; primaries of this node go on for as long as every other voter agrees");
            self.say(EventKind::FailsafeBegan, message);
        }
    }

    /// It was not, and ends if that goes on.
    pub(crate) fn lease_failed(&mut self, error: String) {
        let over = self.shell.lease_until.is_none_or(|until| until < platform::clock::since_boot());
        if over && std::mem::take(&mut self.failsafe) {
            self.say(EventKind::FailsafeEnded, format!("primaries of this node end: {error}"));
        }
        self.lease_error = Some(error);
    }

    fn lease_good_until(&mut self, lease: Option<LeaseId>, until: Duration) {
        self.shell.renewed(lease, until);
        for service in self.pace.standing.iter().filter_map(|name| self.services.get(name)) {
            service.renew_deadline(&self.shell);
        }
    }

    fn say(&mut self, kind: EventKind, message: String) {
        let cause = self.shell.new_cause();
        self.shell.emit(kind, Subject::default(), &cause, message);
    }
}
