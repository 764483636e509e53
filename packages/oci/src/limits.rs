//! How much one layer may ask for.

/// Upper bounds that make the cost of hostile input known in advance.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Inodes plus names, including invented parents.
    pub max_entries: u64,
    /// Bytes of the uncompressed stream.
    pub max_size: u64,
    /// Logical bytes of one file.
    pub max_file_size: u64,
    /// Uncompressed bytes per compressed byte, past the first `ratio_floor` bytes.
    pub max_ratio: u64,
    /// Uncompressed bytes free of `max_ratio`: small layers of zeros are legitimate.
    pub ratio_floor: u64,
    /// Bytes of one path or link target.
    pub max_path: u64,
    /// Bytes of all extended attributes of one entry.
    pub max_xattrs: u64,
    /// Bytes of all PAX and GNU long-name records of one entry, or of its sparse map.
    pub max_header: u64,
    /// Bytes of everything that is held in memory until the end.
    pub max_metadata: u64,
    /// Base-2 logarithm of the largest zstd window.
    pub max_window_log: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_entries: 2_000_000,
            max_size: 64 << 30,
            max_file_size: 1 << 40,
            // DEFLATE cannot exceed 1032:1 and bombs sit just below; real layers stay below 100:1.
            max_ratio: 200,
            ratio_floor: 256 << 20,
            max_path: 4095,
            max_xattrs: 128 << 10,
            max_header: 1 << 20,
            max_metadata: 1 << 30,
            // What `zstd --long` produces at most without a flag on the reading side.
            max_window_log: 27,
        }
    }
}

impl Limits {
    /// Every limit with its name, for callers that speak in dictionaries.
    pub fn named(&mut self) -> [(&'static str, &mut u64); 10] {
        [
            ("max_entries", &mut self.max_entries),
            ("max_size", &mut self.max_size),
            ("max_file_size", &mut self.max_file_size),
            ("max_ratio", &mut self.max_ratio),
            ("ratio_floor", &mut self.ratio_floor),
            ("max_path", &mut self.max_path),
            ("max_xattrs", &mut self.max_xattrs),
            ("max_header", &mut self.max_header),
            ("max_metadata", &mut self.max_metadata),
            ("max_window_log", &mut self.max_window_log),
        ]
    }
}
