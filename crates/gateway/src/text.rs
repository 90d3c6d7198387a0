//! Numbers, hex and dates as bytes, appended without allocation.
//! Used by whatever writes heads. Deliberately absent: parsing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Appends a number in decimal.
pub(crate) fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a number in hex, without leading zeros.
pub(crate) fn push_hex(out: &mut Vec<u8>, number: u64) {
    let digits = hex16(number);
    let zeros = digits.iter().take(15).take_while(|&&digit| digit == b'0').count();
    out.extend_from_slice(&digits[zeros..]);
}

/// All sixteen hex digits of a number.
pub(crate) fn hex16(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    for (index, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (60 - 4 * index) & 15) as usize];
    }
    digits
}

/// The value of `Server-Timing` (W3C): milliseconds before an instance was asked, and until it began to answer.
pub(crate) fn server_timing(gateway: Duration, instance: Duration) -> String {
    let milliseconds = |took: Duration| took.as_secs_f64() * 1000.0;
    format!("gateway;dur={:.3}, instance;dur={:.3}", milliseconds(gateway), milliseconds(instance))
}

/// An HTTP date that is written anew once a second.
#[derive(Debug, Default)]
pub(crate) struct Date {
    second: u64,
    text: String,
}

impl Date {
    /// `Sun, 06 Nov 1994 08:49:37 GMT` for this moment.
    pub(crate) fn at(&mut self, now: SystemTime) -> &str {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second || self.text.is_empty() {
            self.second = second;
            self.text = imf_fixdate(second);
        }
        &self.text
    }
}

fn imf_fixdate(unix_seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = unix_seconds / 86_400;
    let second = unix_seconds % 86_400;
    // Howard Hinnant's civil_from_days: years begin in March, eras are 400 years.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[(month - 1) as usize],
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::{imf_fixdate, push_decimal, push_hex};

    #[test]
    fn dates() {
        for (second, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_827_696, "Tue, 29 Feb 2000 12:34:56 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
        ] {
            assert_eq!(imf_fixdate(second), text);
        }
    }

    #[test]
    fn numbers() {
        for number in [0, 9, 10, 255, 4096, u64::MAX] {
            let (mut decimal, mut hex) = (Vec::new(), Vec::new());
            push_decimal(&mut decimal, number);
            push_hex(&mut hex, number);
            assert_eq!(decimal, number.to_string().as_bytes());
            assert_eq!(hex, format!("{number:x}").as_bytes());
        }
    }
}
