//! Breakers held by hand: `seawall breaker` commits what is wanted, every node of the cluster follows it to its gateway, and
//! a node that starts reads it again. Deliberately absent: breakers that judge by themselves, each in its gateway.

use api::view::BreakerView;
use api::{BreakerHold, Refusal, RefusalKind};
use data::{KeyRange, Txn, TxnOutcome};
use gateway::breaker::Forced;
use model::ServiceName;
use tokio::sync::oneshot;

use crate::cluster::records::key;
use crate::controller::Controller;
use crate::input::Input;
use crate::shell::Outcome;

/// Before the name of a service whose breaker is held.
pub const BREAKER: &str = "control/breaker/";

/// Who is told what became of it.
type Reply = oneshot::Sender<Result<BreakerView, Refusal>>;

impl Controller {
    /// Commits what an operator wants of a breaker.
    pub fn ask_breaker(&mut self, service: ServiceName, hold: Option<BreakerHold>, reply: Reply) {
        let has = self.services.get(&service).is_some_and(|service| {
            service.definition.traffic.as_ref().is_some_and(|traffic| traffic.circuit_breaker.is_some())
        });
        if !has {
            let message = format!(
                "`{service}` has no circuit breaker: give it `traffic: {{ circuitBreaker: {{ preset: hystrix }} }}`"
            );
            return drop(reply.send(Err(Refusal { kind: RefusalKind::Refused, message })));
        }
        let at = key(&format!("{BREAKER}{service}"));
        let txn = match hold {
            Some(hold) => Txn::put(at, serde_json::to_vec(&hold).expect("a word becomes JSON")),
            None => Txn::delete(KeyRange::key(&at)),
        };
        let store = std::sync::Arc::clone(&self.shell.store);
        self.shell.spawn(async move { Input::BreakerHeld { service, hold, reply, outcome: store.txn(txn).await } });
    }

    /// It was committed, or was not.
    pub fn breaker_held(&mut self, service: &ServiceName, hold: Option<BreakerHold>, reply: Reply, outcome: &Outcome) {
        if !matches!(outcome, Ok(TxnOutcome::Committed { .. })) {
            let why = match outcome {
                Err(error) => error.to_string(),
                Ok(_) => "nobody knows whether it was written".to_owned(),
            };
            let message = format!("the breaker of `{service}` is as it was: {why}; see `seawall status` and try again");
            return drop(reply.send(Err(Refusal { kind: RefusalKind::Failed, message })));
        }
        self.breaker_is(service, hold);
        let view = self.shell.table.service(service).guards().and_then(|guards| guards.breaker);
        let answer = match self.services.get(service).zip(view) {
            Some((service, view)) => Ok(service.breaker_view(&view)),
            None => Err(Refusal {
                kind: RefusalKind::NotFound,
                message: format!("`{service}` lost its breaker while this was asked"),
            }),
        };
        self.shell.answer(reply, answer);
    }

    /// What was read at a key of [`BREAKER`].
    pub fn breaker_read(&mut self, service: &ServiceName, value: Option<&[u8]>) {
        let hold = match value.map(serde_json::from_slice).transpose() {
            Ok(hold) => hold,
            Err(error) => {
                return tracing::error!(%service, %error, "a breaker held by hand cannot be read; is it of a newer version?");
            }
        };
        self.breaker_is(service, hold);
    }

    fn breaker_is(&mut self, service: &ServiceName, hold: Option<BreakerHold>) {
        let held = &mut self.shell.held_breakers;
        match hold {
            Some(BreakerHold::Open) => held.insert(service.clone(), Forced::Open),
            Some(BreakerHold::Closed) => held.insert(service.clone(), Forced::Closed),
            None => held.remove(service),
        };
        self.with(service, |service, shell, _| service.hold_breaker(shell));
    }
}
