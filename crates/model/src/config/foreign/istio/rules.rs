//! Istio's DestinationRules as they are written. Fields read as [`Ignored`] are known to Istio; whether they are refused is said
//! where they would be used.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::super::decode::record;
use super::super::Ignored;
use super::shapes::Metadata;

record! {
    /// How a service is used.
    DestinationRule as "a DestinationRule" {
        /// Which version of Istio's interface.
        api_version: String,
        /// `DestinationRule`.
        kind: String,
        /// Its name.
        metadata: Metadata = Metadata::default(),
        /// What it says.
        spec: RuleSpec,
        /// What a cluster says of it.
        status: Option<Ignored> = None,
    }
}

record! {
    /// How a service is used.
    RuleSpec as "`spec` of a DestinationRule" {
        /// Which.
        host: String,
        /// Its parts.
        subsets: Vec<Subset> = Vec::new(),
        /// For all of it.
        traffic_policy: Option<TrafficPolicy> = None,
        /// Refused.
        export_to: Option<Ignored> = None,
        /// Refused.
        workload_selector: Option<Ignored> = None,
    }
}

record! {
    /// A part of a service.
    Subset as "`subsets` of a DestinationRule" {
        /// Its name.
        name: String,
        /// What its instances have.
        labels: BTreeMap<String, String> = BTreeMap::new(),
        /// Refused.
        traffic_policy: Option<Ignored> = None,
    }
}

record! {
    /// Bounds.
    TrafficPolicy as "`trafficPolicy` of a DestinationRule" {
        /// How many at once.
        connection_pool: Option<ConnectionPool> = None,
        /// Who is left alone.
        outlier_detection: Option<OutlierDetection> = None,
        /// Refused.
        load_balancer: Option<Ignored> = None,
        /// Refused.
        tls: Option<Ignored> = None,
        /// Refused.
        port_level_settings: Option<Ignored> = None,
        /// Refused.
        tunnel: Option<Ignored> = None,
        /// Refused.
        proxy_protocol: Option<Ignored> = None,
        /// Refused.
        retry_budget: Option<Ignored> = None,
    }
}

record! {
    /// How many at once.
    ConnectionPool as "`connectionPool` of a DestinationRule" {
        /// Connections.
        tcp: Option<TcpPool> = None,
        /// Requests.
        http: Option<HttpPool> = None,
    }
}

record! {
    /// Connections.
    TcpPool as "`tcp` of a `connectionPool`" {
        /// With HTTP/1 that many requests.
        max_connections: Option<u32> = None,
        /// Refused.
        connect_timeout: Option<Ignored> = None,
        /// Refused.
        tcp_keepalive: Option<Ignored> = None,
        /// Refused.
        max_connection_duration: Option<Ignored> = None,
        /// Refused.
        idle_timeout: Option<Ignored> = None,
    }
}

record! {
    /// Requests.
    HttpPool as "`http` of a `connectionPool`" {
        /// That wait.
        http1_max_pending_requests: Option<u32> = None,
        /// At once.
        http2_max_requests: Option<u32> = None,
        /// Refused.
        max_requests_per_connection: Option<Ignored> = None,
        /// Refused.
        max_retries: Option<Ignored> = None,
        /// Refused.
        idle_timeout: Option<Ignored> = None,
        /// Refused.
        h2_upgrade_policy: Option<Ignored> = None,
        /// Refused.
        use_client_protocol: Option<Ignored> = None,
        /// Refused.
        max_concurrent_streams: Option<Ignored> = None,
    }
}

record! {
    /// Who is left alone.
    OutlierDetection as "`outlierDetection` of a DestinationRule" {
        /// In a row; 0 is never.
        consecutive_5xx_errors: Option<u32> = None,
        /// The same, of before.
        consecutive_errors: Option<u32> = None,
        /// How often it is looked.
        interval: Option<Duration> = None,
        /// How long, the first time.
        base_ejection_time: Duration = Duration::from_secs(30),
        /// How many at a time.
        max_ejection_percent: u32 = 10,
        /// Below that nobody is.
        min_health_percent: u32 = 0,
        /// Refused.
        consecutive_gateway_errors: Option<Ignored> = None,
        /// Refused.
        consecutive_local_origin_failures: Option<Ignored> = None,
        /// Refused.
        split_external_local_origin_errors: Option<Ignored> = None,
    }
}
