//! What was in force before a swap, kept while a request still looks at it.
//! Freeing 100,000 endpoints takes milliseconds; whoever swaps pays for that, never the request that happened to be the
//! last reader. Deliberately absent: any use of what is kept.

use std::sync::Arc;

/// Most kept at once: a tunnel may hold on to its endpoints for hours. One more, and the oldest is left to its readers.
const MOST: usize = 4;

/// Values no longer in force.
#[derive(Debug)]
pub(crate) struct Retired<T>(Vec<Arc<T>>);

impl<T> Default for Retired<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Retired<T> {
    /// Takes one, and frees all that nobody reads any more.
    pub(crate) fn add(&mut self, value: Arc<T>) {
        self.0.push(value);
        self.0.retain(|kept| Arc::strong_count(kept) > 1);
        if self.0.len() > MOST {
            self.0.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Retired};
    use std::sync::Arc;

    #[test]
    fn who_swaps_frees_and_few_are_kept() {
        let mut retired = Retired::default();
        let reader = Arc::new(1);
        retired.add(reader.clone());
        retired.add(Arc::new(2));
        assert_eq!(retired.0, [Arc::new(1)], "the other had no reader");
        let readers: Vec<_> = (0..9).map(Arc::new).collect();
        readers.iter().for_each(|reader| retired.add(reader.clone()));
        assert_eq!(retired.0.len(), MOST);
        drop(readers);
        retired.add(Arc::new(3));
        assert!(retired.0.is_empty());
    }
}
