//! Where a part of the configuration was read from, if that is another tool's file: so that such a file, applied by itself,
//! takes the place of what an earlier one said of the same, and of nothing else. Deliberately absent: how each tool's parts are
//! found again (beside its reader).

use super::super::decode::{record, words};

record! {
    /// The part of another tool's file that this was read from: `seawall apply -f` of such a file replaces what an earlier one said of the same. Seawall writes it.
    Origin as "`from`" {
        /// What it is there.
        kind: OriginKind,
        /// Its name there: of an object, an upstream, a location, a command.
        name: String = String::new(),
        /// Of a VirtualService: the hosts that this part of it is for; none are all.
        hosts: Vec<String> = Vec::new(),
        /// Of a VirtualService: it answers what no other route of its hosts takes.
        closes: bool = false,
        /// Of a location: as many servers are asked as there are.
        each_server: bool = false,
    }
}

words! {
    /// What something is in another tool's file.
    OriginKind {
        /// Sentinel's.
        SystemRule = "SystemRule",
        /// Sentinel's.
        ParamFlowRule = "ParamFlowRule",
        /// Sentinel's.
        FlowRule = "FlowRule",
        /// Sentinel's.
        DegradeRule = "DegradeRule",
        /// Hystrix' properties of a command.
        Hystrix = "hystrix",
        /// nginx' blocks.
        Nginx = "nginx",
        /// Istio's.
        VirtualService = "VirtualService",
        /// Istio's.
        DestinationRule = "DestinationRule",
    }
}

impl Origin {
    /// Of a kind, and of a name there.
    pub(super) fn new(kind: OriginKind, name: impl Into<String>) -> Self {
        let at = super::super::decode::Places::default();
        Self { kind, name: name.into(), hosts: Vec::new(), closes: false, each_server: false, at }
    }
}

/// Whether something was read from a file of this kind.
pub(super) fn is_of(from: Option<&Origin>, kind: OriginKind) -> bool {
    from.is_some_and(|from| from.kind == kind)
}
