//! Any text as a filter: it is refused with a reason, or it says of an object whether it fits; never a panic, and the same twice.

use discovery::bexpr::Filter;
use serde_json::json;

/// The text of a filter.
pub fn filter(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let filter = match Filter::parse(text) {
        Ok(filter) => filter,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let object = json!({
        "ID": "web-1", "Node": { "Node": "n1", "Meta": { "rack": "a" } },
        "Service": { "Service": "web", "Port": 80, "Tags": ["v1", ""], "Meta": { "a": "b", "a.b": "c" }, "EnableTagOverride": false },
        "Checks": [{ "CheckID": "a", "Status": "passing" }, { "CheckID": "b", "Status": "critical" }],
        "Nothing": null, "Empty": [],
    });
    let said = filter.fits(&object).map_err(|error| error.to_string());
    assert_eq!(filter.fits(&object).map_err(|error| error.to_string()), said);
    let mut list = vec![object.clone(), json!({}), json!(null), object];
    // Ignored: it may name what is not there.
    let _ = filter.keep(&mut list);
    assert!(list.len() <= 4);
}
