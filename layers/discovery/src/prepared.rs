//! Prepared queries: found by id, by name, or by the longest template that a name begins with; carried out on the catalog.
//! The parts of a template are Consul's: `${name.full}`, `${name.prefix}`, `${name.suffix}`, `${match(N)}`.

use regex_lite::{Regex, RegexBuilder};

use crate::catalog::{Catalog, Stored};
use crate::record::{CheckStatus, QueryRecord};
use crate::select::{Instance, Wanted, has_meta, has_tag, instances as of_service, nearest_first};

/// The most memory of a template's expression, in bytes.
const REGEX_BYTES: usize = 1 << 20;

/// A query's id, and the query with everything filled in.
pub type Found = (String, Stored<QueryRecord>);

/// Whether a template may have this expression.
pub fn is_regex(text: &str) -> bool {
    compiled(text).is_some()
}

fn compiled(text: &str) -> Option<Regex> {
    RegexBuilder::new(text).size_limit(REGEX_BYTES).build().ok()
}

/// The query that a client names.
pub fn find(catalog: &Catalog, wanted: &str) -> Option<Found> {
    if let Some(found) = catalog.query(wanted) {
        return Some((wanted.to_owned(), found.clone()));
    }
    let same = |query: &Stored<QueryRecord>| {
        !query.record.prefix_template && !query.record.name.is_empty() && query.record.name.eq_ignore_ascii_case(wanted)
    };
    if let Some((id, found)) = catalog.queries().find(|(_, query)| same(query)) {
        return Some((id.to_owned(), found.clone()));
    }
    let begins = |query: &Stored<QueryRecord>| query.record.prefix_template && wanted.starts_with(&query.record.name);
    let longest = catalog.queries().filter(|(_, query)| begins(query)).max_by_key(|(_, query)| query.record.name.len());
    longest.map(|(id, query)| (id.to_owned(), filled(query, wanted)))
}

fn filled(query: &Stored<QueryRecord>, name: &str) -> Stored<QueryRecord> {
    let record = &query.record;
    let matches = match record.template_regexp.as_str() {
        "" => Vec::new(),
        text => compiled(text)
            .and_then(|regex| {
                let found = regex.captures(name)?;
                Some(found.iter().map(|part| part.map_or(String::new(), |part| part.as_str().to_owned())).collect())
            })
            .unwrap_or_default(),
    };
    let fill = |text: &String| {
        let mut text = text.replace("${name.full}", name).replace("${name.prefix}", &record.name);
        text = text.replace("${name.suffix}", name.strip_prefix(record.name.as_str()).unwrap_or_default());
        for (index, part) in matches.iter().enumerate().take(100) {
            text = text.replace(&format!("${{match({index})}}"), part);
        }
        text
    };
    let mut new = record.clone();
    new.service = fill(&record.service);
    new.tags = record.tags.iter().map(fill).filter(|tag| !record.remove_empty_tags || !tag.is_empty()).collect();
    new.datacenters = record.datacenters.iter().map(fill).collect();
    Stored { record: new, ..query.clone() }
}

/// The instances that a query gives: those that are critical never, those that warn unless it wants only passing ones.
pub fn instances<'a>(catalog: &'a Catalog, query: &QueryRecord, near: Option<&str>) -> Vec<Instance<'a>> {
    let wanted = Wanted { node_meta: query.node_meta.clone(), ..Wanted::default() };
    let name = catalog.find_name(&query.service).unwrap_or(&query.service).to_owned();
    let mut found = of_service(catalog, &name, &wanted);
    found.retain(|instance| {
        let service = &instance.service.record;
        let tagged = query.tags.iter().all(|tag| match tag.strip_prefix('!') {
            Some(tag) => !has_tag(service, tag),
            None => has_tag(service, tag),
        });
        let counts =
            instance.checks.iter().filter(|(id, _)| !query.ignore_check_ids.iter().any(|ignored| ignored == id));
        let worst = counts.map(|(_, check)| check.record.status).max().unwrap_or(CheckStatus::Passing);
        let most = if query.only_passing { CheckStatus::Passing } else { CheckStatus::Warning };
        tagged && worst <= most && has_meta(&service.meta, &query.service_meta)
    });
    if let Some(near) = near {
        nearest_first(&mut found, near, |instance| instance.node_name);
    }
    found
}
