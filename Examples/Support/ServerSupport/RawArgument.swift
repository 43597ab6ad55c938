// SPDX-License-Identifier: Apache-2.0
//
// The arguments of the process, byte for byte. A path is any bytes but NUL, and a `String` is
// UTF-8: `CommandLine.arguments` replaces what is not by U+FFFD, which is the name of another file.

import ArgumentParser
import Glibc
import SystemPackage

/// A one-to-one mapping between any bytes and text, so that arguments can pass a parser of text.
///
/// A byte that is not part of valid UTF-8 becomes a scalar of its own, in the last private ones:
/// U+10FF80 for 0x80 to U+10FFFF for 0xFF. Where those stand in an argument, as UTF-8, they are
/// mapped byte by byte, too, so that no two arguments become the same text.
public enum RawArgument {
  private static let scalars: ClosedRange<UInt32> = 0x10FF80...0x10FFFF
  private static let base: UInt32 = 0x10FF00

  /// The arguments of this process, without the program's name.
  public static func ofProcess() -> [String] {
    (1..<max(1, Int(CommandLine.argc))).compactMap { index in
      CommandLine.unsafeArgv[index].map {
        text(of: UnsafeRawBufferPointer(start: $0, count: strlen($0)))
      }
    }
  }

  public static func text(of bytes: some Collection<UInt8>) -> String {
    var text = String.UnicodeScalarView()
    func append(_ byte: UInt8) {
      text.append(Unicode.Scalar(base + UInt32(byte))!)  // never nil: one of `scalars`
    }
    var rest = bytes.makeIterator()
    var original = bytes.makeIterator()
    var parser = Unicode.UTF8.ForwardParser()
    while true {
      switch parser.parseScalar(from: &rest) {
      case .valid(let encoded):
        let scalar = Unicode.UTF8.decode(encoded)
        let bytes = encoded.compactMap { _ in original.next() }
        if scalars.contains(scalar.value) { bytes.forEach(append) } else { text.append(scalar) }
      case .error(let length):
        for _ in 0..<length { if let byte = original.next() { append(byte) } }
      case .emptyInput:
        return String(text)
      }
    }
  }

  public static func bytes(of text: String) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(text.utf8.count)
    for scalar in text.unicodeScalars {
      if let byte = byte(of: scalar) {
        bytes.append(byte)
      } else {
        bytes.append(contentsOf: UTF8.encode(scalar)!)  // never nil: any scalar has UTF-8
      }
    }
    return bytes
  }

  /// The byte that a scalar stands for, if it does.
  static func byte(of scalar: Unicode.Scalar) -> UInt8? {
    scalars.contains(scalar.value) ? UInt8(scalar.value - base) : nil
  }

  /// The path that an argument, or a part of it, names.
  public static func path(_ text: String) -> FilePath {
    FilePath(platformString: bytes(of: text).map(CChar.init(bitPattern:)) + [0])
  }
}

/// A path given as an argument: exactly the bytes that were given.
public struct PathArgument: ExpressibleByArgument, Sendable, CustomStringConvertible {
  public let path: FilePath
  /// Whether it ended with a slash, which a `FilePath` drops: then only a directory is meant.
  public let endsWithSlash: Bool

  public init(argument: String) {
    path = RawArgument.path(argument)
    endsWithSlash = argument.hasSuffix("/")
  }

  public var description: String {
    path.escaped + (endsWithSlash && path.lastComponent != nil ? "/" : "")
  }
  public var defaultValueDescription: String { description }
}
