//! One section of `bench/RESULTS.md`, between marks of its own, so that a command replaces what it wrote and no more.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Replaces the section `name` of `bench` in `file`, or adds it; everything else stays.
pub fn record(file: &Path, bench: &str, name: &str, section: &str) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    fs::write(file, replaced(&text, bench, name, section))?;
    println!("recorded in {}", file.display());
    Ok(())
}

/// Where a section that is not there yet goes.
fn end_of_sections(bench: &str) -> String {
    format!("<!-- new sections of `bench {bench}` go above this line -->")
}

/// `text` with `section` between the marks of its name, which are added if they are not there.
fn replaced(text: &str, bench: &str, name: &str, section: &str) -> String {
    let (begin, end) = (format!("<!-- bench {bench}: {name} -->\n"), format!("<!-- end: {name} -->\n"));
    let block = format!("{begin}{section}{end}");
    match (text.find(&begin), text.find(&end)) {
        (Some(from), Some(to)) if from < to => text[..from].to_owned() + &block + &text[to + end.len()..],
        _ => match text.find(&end_of_sections(bench)) {
            Some(at) => format!("{}{block}\n{}", &text[..at], &text[at..]),
            None => format!("{text}\n{block}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{end_of_sections, replaced};

    #[test]
    fn only_the_own_section_is_replaced() {
        let page = format!("before\n{}\nafter\n", end_of_sections("gateway"));
        let replaced = |text: &str, name, section| replaced(text, "gateway", name, section);
        let both = replaced(&replaced(&page, "one", "1\n"), "two", "2\n");
        let again = replaced(&both, "one", "3\n");
        assert_eq!(again, both.replace("1\n", "3\n"));
        assert!(again.starts_with("before\n<!-- bench gateway: one -->\n3\n<!-- end: one -->\n"), "{again}");
        assert!(again.contains("2\n") && again.ends_with("after\n"), "{again}");
    }

    #[test]
    fn a_page_without_marks_gets_them_at_its_end() {
        let page = replaced("page\n", "churn", "one", "1\n");
        assert_eq!(page, "page\n\n<!-- bench churn: one -->\n1\n<!-- end: one -->\n");
    }
}
