// SPDX-License-Identifier: Apache-2.0

import HTTPTypes

/// Writes a response's line and fields.
struct ResponseHead {
  let output: OutputBuffer

  /// - Parameter date: The Date field's line.
  init(_ status: Int, date: [UInt8], to output: OutputBuffer) {
    self.output = output
    switch status {
    case 200: output.append("HTTP/1.1 200 OK\r\n")
    case 206: output.append("HTTP/1.1 206 Partial Content\r\n")
    case 304: output.append("HTTP/1.1 304 Not Modified\r\n")
    default:
      output.append("HTTP/1.1 ")
      output.append(Self.text(of: status))
      output.append("\r\n")
    }
    output.append("Server: aio-httpd\r\n")
    output.append(date)
  }

  private static let statuses: [HTTPResponse.Status] = [
    .ok, .created, .noContent, .partialContent, .movedPermanently, .notModified, .badRequest,
    .forbidden, .notFound, .methodNotAllowed, .requestTimeout, .conflict, .lengthRequired,
    .preconditionFailed, .contentTooLarge, .uriTooLong, .rangeNotSatisfiable, .expectationFailed,
    .requestHeaderFieldsTooLarge, .internalServerError, .notImplemented, .serviceUnavailable,
    .httpVersionNotSupported, .init(code: 507, reasonPhrase: "Insufficient Storage"),
  ]

  /// `404 Not Found`.
  static func text(of status: Int) -> String {
    let phrase = statuses.first { $0.code == status }?.reasonPhrase
    return phrase.map { "\(status) \($0)" } ?? "\(status)"
  }

  func add(_ name: StaticString, _ value: StaticString) {
    output.append(name)
    output.append(": ")
    output.append(value)
    output.append("\r\n")
  }

  func add(_ name: StaticString, _ value: String) {
    output.append(name)
    output.append(": ")
    output.append(value)
    output.append("\r\n")
  }

  func add(contentLength: Int64) {
    output.append("Content-Length: ")
    output.append(contentLength)
    output.append("\r\n")
  }

  func add(contentRange range: Range<Int64>, of size: Int64) {
    output.append("Content-Range: bytes ")
    Self.append(range, of: size, to: output)
    output.append("\r\n")
  }

  static func append(_ range: Range<Int64>, of size: Int64, to output: OutputBuffer) {
    output.append(range.lowerBound)
    output.append(byte: UInt8(ascii: "-"))
    output.append(range.upperBound - 1)
    output.append(byte: UInt8(ascii: "/"))
    output.append(size)
  }

  /// Ends the head.
  ///
  /// - Parameter keepsAlive: Whether the connection stays; said where the client's version takes it
  ///   otherwise.
  func end(keepsAlive: Bool, isOld: Bool) {
    if !keepsAlive {
      output.append("Connection: close\r\n")
    } else if isOld {
      output.append("Connection: keep-alive\r\n")
    }
    output.append("\r\n")
  }
}
