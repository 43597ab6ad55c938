// SPDX-License-Identifier: Apache-2.0

#if FlyingFox

/// The media types of files, by the ends of their names.
enum MediaType {
  private static let types = [
    "avif": "image/avif", "css": "text/css", "csv": "text/csv", "gif": "image/gif",
    "htm": "text/html", "html": "text/html", "ico": "image/vnd.microsoft.icon",
    "javascript": "application/javascript", "jp2": "image/jp2", "jpeg": "image/jpeg",
    "jpg": "image/jpeg", "js": "application/javascript", "json": "application/json",
    "m4v": "video/x-m4v", "md": "text/markdown", "mjs": "application/javascript",
    "mp3": "audio/mpeg", "mp4": "video/mp4", "pdf": "application/pdf", "png": "image/png",
    "properties": "text/plain", "svg": "image/svg+xml", "txt": "text/plain",
    "wasm": "application/wasm", "webm": "video/webm", "webp": "image/webp",
    "woff2": "font/woff2", "xml": "application/xml", "zip": "application/zip",
  ]

  /// - Parameter name: The last component of a path.
  static func of(_ name: Substring) -> String {
    guard let dot = name.lastIndex(of: ".") else { return "application/octet-stream" }
    let ending = name[name.index(after: dot)...]
    return types[String(ending)] ?? types[ending.lowercased()] ?? "application/octet-stream"
  }
}
#endif
