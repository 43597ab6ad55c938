// SPDX-License-Identifier: Apache-2.0

/// What a file holds, by the end of its name.
struct MediaType: Sendable {
  let name: StaticString
  /// Whether a compressed file beside it is looked for: it pays for text, and not for what is
  /// compressed already.
  let isCompressible: Bool

  static let unknown = MediaType(name: "application/octet-stream", isCompressible: false)

  /// - Parameter path: may have a zero byte at its end.
  static func of(path: Bytes) -> MediaType {
    var (end, key) = (path.count, UInt64(0))
    if end > 0, path[end - 1] == 0 { end -= 1 }
    var (index, shift) = (end - 1, UInt64(0))
    while index >= 0, path[index] != UInt8(ascii: ".") {
      // No ending that is known is longer, and none has a slash.
      guard shift < 64, path[index] != UInt8(ascii: "/") else { return .unknown }
      key |= UInt64(lowercased(path[index])) << shift
      shift += 8
      index -= 1
    }
    return index < 0 ? .unknown : known[key] ?? .unknown
  }

  /// The letters of an ending, the last one lowest.
  private static func key(_ ending: String) -> UInt64 {
    ending.utf8.reduce(0) { $0 << 8 | UInt64($1) }
  }

  private static let known: [UInt64: MediaType] = {
    let text: [(String, StaticString)] = [
      ("html", "text/html; charset=utf-8"), ("htm", "text/html; charset=utf-8"),
      ("css", "text/css; charset=utf-8"), ("js", "text/javascript; charset=utf-8"),
      ("mjs", "text/javascript; charset=utf-8"), ("txt", "text/plain; charset=utf-8"),
      ("log", "text/plain; charset=utf-8"), ("md", "text/markdown; charset=utf-8"),
      ("csv", "text/csv; charset=utf-8"), ("xml", "application/xml"),
      ("json", "application/json"), ("map", "application/json"),
      ("svg", "image/svg+xml"), ("wasm", "application/wasm"),
      ("rss", "application/rss+xml"), ("atom", "application/atom+xml"),
      ("vtt", "text/vtt; charset=utf-8"),
      ("m3u8", "application/vnd.apple.mpegurl"), ("ttf", "font/ttf"), ("otf", "font/otf"),
      ("yaml", "application/yaml"), ("yml", "application/yaml"),
    ]
    let binary: [(String, StaticString)] = [
      ("png", "image/png"), ("jpg", "image/jpeg"), ("jpeg", "image/jpeg"), ("gif", "image/gif"),
      ("webp", "image/webp"), ("avif", "image/avif"), ("ico", "image/x-icon"),
      ("bmp", "image/bmp"), ("tiff", "image/tiff"), ("mp4", "video/mp4"), ("m4v", "video/mp4"),
      ("webm", "video/webm"), ("mkv", "video/x-matroska"), ("mov", "video/quicktime"),
      ("ts", "video/mp2t"), ("mp3", "audio/mpeg"), ("m4a", "audio/mp4"), ("aac", "audio/aac"),
      ("ogg", "audio/ogg"), ("opus", "audio/ogg"), ("flac", "audio/flac"), ("wav", "audio/wav"),
      ("woff", "font/woff"), ("woff2", "font/woff2"), ("pdf", "application/pdf"),
      ("zip", "application/zip"), ("gz", "application/gzip"), ("tgz", "application/gzip"),
      ("zst", "application/zstd"), ("xz", "application/x-xz"), ("bz2", "application/x-bzip2"),
      ("tar", "application/x-tar"), ("7z", "application/x-7z-compressed"),
      ("iso", "application/x-iso9660-image"), ("deb", "application/vnd.debian.binary-package"),
      ("epub", "application/epub+zip"),
    ]
    var types: [UInt64: MediaType] = [:]
    for (ending, name) in text {
      types[key(ending)] = MediaType(name: name, isCompressible: true)
    }
    for (ending, name) in binary {
      types[key(ending)] = MediaType(name: name, isCompressible: false)
    }
    return types
  }()
}
