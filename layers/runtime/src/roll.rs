//! The order of a planned restart or roll: one instance at a time, never below `minAvailable`, the primary last.

use model::InstanceId;

/// What a roll needs to know of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// Which.
    pub id: InstanceId,
    /// It still runs what the roll replaces.
    pub pending: bool,
    /// It is ready for traffic.
    pub ready: bool,
    /// It is the primary.
    pub primary: bool,
}

/// The roll's next step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Replace this one; it serves nothing, or enough others do.
    Replace(InstanceId),
    /// Make this already replaced standby the primary first.
    Promote(InstanceId),
    /// Wait until more instances are ready.
    Wait,
    /// Every instance is replaced and ready.
    Done,
}

/// Decides the next step. `min_available` is capped by what the service can have at all.
pub fn next(instances: &[View], min_available: u32) -> Step {
    let ready = instances.iter().filter(|view| view.ready).count();
    if !instances.iter().any(|view| view.pending) {
        return if instances.iter().all(|view| view.ready) { Step::Done } else { Step::Wait };
    }
    // One at a time: a replaced one that is not ready yet is the one under way.
    if instances.iter().any(|view| !view.pending && !view.ready) {
        return Step::Wait;
    }
    // Those that serve nothing go first: replacing them costs nobody anything.
    let idle = instances.iter().find(|view| view.pending && !view.ready && !view.primary);
    if let Some(view) = idle {
        return Step::Replace(view.id.clone());
    }
    if ready <= min_available as usize {
        return Step::Wait;
    }
    if let Some(view) = instances.iter().rev().find(|view| view.pending && !view.primary) {
        return Step::Replace(view.id.clone());
    }
    let successor = instances.iter().find(|view| !view.pending && view.ready && !view.primary);
    match (successor, instances.iter().find(|view| view.pending)) {
        (Some(successor), _) => Step::Promote(successor.id.clone()),
        (None, Some(last)) => Step::Replace(last.id.clone()),
        (None, None) => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::{Step, View, next};

    /// `p` pending, `r` ready, `*` primary; e.g. "pr* pr r".
    fn check(instances: &str, min_available: u32, expected: &str) {
        let views: Vec<View> = instances
            .split(' ')
            .enumerate()
            .map(|(index, text)| View {
                id: index.to_string().as_str().into(),
                pending: text.contains('p'),
                ready: text.contains('r'),
                primary: text.contains('*'),
            })
            .collect();
        let step = match next(&views, min_available) {
            Step::Replace(id) => format!("replace {id}"),
            Step::Promote(id) => format!("promote {id}"),
            Step::Wait => "wait".into(),
            Step::Done => "done".into(),
        };
        assert_eq!(step, expected, "{instances} with {min_available}");
    }

    #[test]
    fn one_at_a_time_primary_last_never_below_the_minimum() {
        check("pr pr pr", 2, "replace 2");
        check("pr pr -", 2, "wait");
        check("pr pr r", 2, "replace 1");
        check("r r r", 2, "done");
        check("r r -", 2, "wait");
        check("pr pr pr", 3, "wait");
        check("p pr pr", 2, "replace 0");
        check("pr", 0, "replace 0");
        check("pr", 1, "wait");
        check("pr* pr", 1, "replace 1");
        check("pr* -", 1, "wait");
        check("pr* r", 1, "promote 1");
        check("pr r*", 1, "replace 0");
        check("pr*", 0, "replace 0");
    }
}
