// SPDX-License-Identifier: Apache-2.0

import CServedFiles
import Glibc
import HTTPRules

/// The page that lists a directory that has no index.html.
enum Listing {
  /// The most names of a page, and the bytes after which it ends.
  private static let (nameLimit, byteLimit) = (10_000, 1 << 20)

  private struct Entry {
    var name: [UInt8]
    var isDirectory: Bool
    var size: Int64
    var modified: Int64
  }

  /// - Parameters:
  ///   - directory: A descriptor of it, closed here.
  ///   - path: Below the directory that is served; `.` for that itself.
  ///   - root: A descriptor of that.
  static func page(
    of directory: Int32, path: ArraySlice<UInt8>, beneath root: Int32
  ) -> [UInt8] {
    var (entries, isCut) = entries(of: directory, path: path, beneath: root)
    let title = path.elementsEqual(".".utf8) ? [] : Array(path)
    var page = Array("<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>/".utf8)
    escape(title, into: &page)
    page += "</title></head>\n<body><h1>/".utf8
    escape(title, into: &page)
    page += "</h1>\n<table>\n".utf8
    if !title.isEmpty { page += "<tr><td><a href=\"../\">../</a></td></tr>\n".utf8 }
    for entry in entries {
      guard page.count < byteLimit else {
        isCut = true
        break
      }
      let slash = entry.isDirectory ? "/" : ""
      page += "<tr><td><a href=\"./".utf8
      encode(entry.name, into: &page)
      page += "\(slash)\">".utf8
      escape(entry.name, into: &page)
      page += "\(slash)</a></td><td>\(HTTPDate.text(entry.modified))</td><td>".utf8
      page += "\(entry.isDirectory ? "" : "\(entry.size)")</td></tr>\n".utf8
    }
    page += "</table>\n".utf8
    if isCut { page += "<p>There are more names here.</p>\n".utf8 }
    page += "</body></html>\n".utf8
    return page
  }

  private static func entries(
    of directory: Int32, path: ArraySlice<UInt8>, beneath root: Int32
  ) -> (entries: [Entry], isCut: Bool) {
    guard let stream = fdopendir(directory) else {
      close(directory)
      return ([], false)
    }
    defer { closedir(stream) }
    var entries: [Entry] = []
    while let entry = readdir(stream) {
      guard entries.count < nameLimit else { return (sorted(entries), true) }
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
      guard name.first != UInt8(ascii: ".") else { continue }
      var found = status(name) { cserved_status_at(directory, $0, $1) }
      // What a link leads to is listed, if a request for it would be answered.
      if let type = found?.type, mode_t(type) == S_IFLNK {
        found = status(path + [UInt8(ascii: "/")] + name) { cserved_status_beneath(root, $0, $1) }
      }
      guard let found, [S_IFREG, S_IFDIR].contains(mode_t(found.type)) else { continue }
      entries.append(
        Entry(
          name: name, isDirectory: mode_t(found.type) == S_IFDIR, size: found.size,
          modified: found.modified_seconds))
    }
    return (sorted(entries), false)
  }

  private static func status(
    _ path: some Collection<UInt8>,
    _ ask: (UnsafePointer<CChar>, UnsafeMutablePointer<cserved_status>) -> Int32
  ) -> cserved_status? {
    var status = cserved_status()
    let answer = (Array(path) + [0]).withUnsafeBytes {
      ask($0.bindMemory(to: CChar.self).baseAddress!, &status)  // It has at least the zero byte.
    }
    return answer == 0 ? status : nil
  }

  private static func sorted(_ entries: [Entry]) -> [Entry] {
    entries.sorted { $0.name.lexicographicallyPrecedes($1.name) }
  }

  /// As text of HTML.
  static func escape(_ bytes: [UInt8], into page: inout [UInt8]) {
    // What is no UTF-8 is shown as what a reader can see.
    for byte in String(decoding: bytes, as: UTF8.self).utf8 {
      switch byte {
      case UInt8(ascii: "<"): page += "&lt;".utf8
      case UInt8(ascii: ">"): page += "&gt;".utf8
      case UInt8(ascii: "&"): page += "&amp;".utf8
      case UInt8(ascii: "\""): page += "&quot;".utf8
      case UInt8(ascii: "'"): page += "&#39;".utf8
      default: page.append(byte)
      }
    }
  }

  /// As part of a URL's path.
  static func encode(_ bytes: [UInt8], into page: inout [UInt8]) {
    let digits = Array("0123456789ABCDEF".utf8)
    for byte in bytes {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "_"),
        UInt8(ascii: "."), UInt8(ascii: "~"), UInt8(ascii: "/"):
        page.append(byte)
      default:
        page += [UInt8(ascii: "%"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
      }
    }
  }
}
