// SPDX-License-Identifier: Apache-2.0

/// The frame of several ranges in one body (multipart/byteranges).
struct Multipart {
  let boundary: String
  let ranges: [Range<Int64>]
  let type: StaticString
  let size: Int64

  init(_ ranges: [Range<Int64>], type: StaticString, size: Int64) {
    // Random, so that no file has it in it but by chance.
    boundary =
      String(UInt64.random(in: 0 ... .max), radix: 36)
      + String(UInt64.random(in: 0 ... .max), radix: 36)
    (self.ranges, self.type, self.size) = (ranges, type, size)
  }

  /// What is sent before a range's bytes.
  func appendHead(of range: Range<Int64>, to output: OutputBuffer) {
    output.append("\r\n--")
    output.append(boundary)
    output.append("\r\nContent-Type: ")
    output.append(type)
    output.append("\r\nContent-Range: bytes ")
    ResponseHead.append(range, of: size, to: output)
    output.append("\r\n\r\n")
  }

  /// What is sent after the last.
  func appendEnd(to output: OutputBuffer) {
    output.append("\r\n--")
    output.append(boundary)
    output.append("--\r\n")
  }

  /// How many bytes the body has.
  var length: Int64 {
    let frame = OutputBuffer(capacity: 4096)
    for range in ranges { appendHead(of: range, to: frame) }
    appendEnd(to: frame)
    return ranges.reduce(Int64(frame.count)) { $0 + ($1.upperBound - $1.lowerBound) }
  }
}
