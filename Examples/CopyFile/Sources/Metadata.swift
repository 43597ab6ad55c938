// SPDX-License-Identifier: Apache-2.0

import CFiles
import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// What a file has besides its bytes: permissions, and with `--preserve` owner, times and extended
/// attributes. Read from the source before its bytes are, and given to the copy at the end.
struct Metadata {
  private static let accessListName = "system.posix_acl_access"

  let status: stat
  private let accessList: [UInt8]?
  /// What is kept of the source: `nil` without `--preserve`.
  private let attributes: [(name: Name, value: [UInt8])]?

  /// The name of an attribute: any bytes, and a zero at the end.
  private typealias Name = [CChar]

  init(of file: AIOFile, _ status: stat, preserves: Bool) throws(Errno) {
    let descriptor = file.fileDescriptor.rawValue
    self.status = status
    accessList = try Self.attribute(Self.accessListName, of: descriptor)
    attributes = preserves ? try Self.attributes(of: descriptor) : nil
  }

  /// Gives a file all of it. The file must not be changed afterwards, because that changes its
  /// times.
  func apply(to file: AIOFile, named name: FilePath) throws {
    let descriptor = file.fileDescriptor.rawValue
    func require(_ answer: Int32, _ what: String) throws {
      guard answer == 0 else {
        throw Failure("\(name.escaped): cannot set its \(what): \(Errno(rawValue: abs(answer)))")
      }
    }
    if let attributes {
      // Only root can give a file away; as with `cp -p`, the copy is the copier's otherwise.
      if fchown(descriptor, status.st_uid, status.st_gid) != 0 {
        fchown(descriptor, uid_t.max, status.st_gid)
      }
      for (attribute, value) in attributes {
        let answer = cfiles_set_attribute(descriptor, attribute, value, value.count)
        // The other kinds are the system's, and not for everybody to set, nor on every filesystem.
        if Self.text(attribute).hasPrefix("user.") {
          try require(answer, "attribute \(Self.text(attribute).escaped)")
        }
      }
    }
    if attributes != nil, let accessList {
      try require(
        cfiles_set_attribute(descriptor, Self.accessListName, accessList, accessList.count),
        "access control list, which --preserve is to keep")
    } else {
      // One that the directory has given it (a default list) would give others rights, too.
      let answer = cfiles_remove_attribute(descriptor, Self.accessListName)
      if ![ENODATA, EOPNOTSUPP].contains(-answer) {
        try require(answer, "access control list")
      }
    }
    try require(fchmod(descriptor, try mode(for: descriptor)) == 0 ? 0 : errno, "permissions")
    if attributes != nil {
      let times = [status.st_atim, status.st_mtim]
      try require(futimens(descriptor, times) == 0 ? 0 : errno, "times")
    }
  }

  /// The mode of the copy: set-user-ID and set-group-ID only if the owner is the same.
  private func mode(for descriptor: Int32) throws(Errno) -> mode_t {
    var copy = stat()
    guard fstat(descriptor, &copy) == 0 else { throw Errno(rawValue: errno) }
    let isSameOwner = copy.st_uid == status.st_uid && copy.st_gid == status.st_gid
    let mode = status.st_mode & (isSameOwner ? 0o7777 : 0o1777)
    guard let accessList, attributes == nil else { return mode }
    // Of a list that cannot be read, only what the owner may is certain.
    return mode & ~0o777 | (AccessList(accessList)?.plainBits ?? mode & 0o700)
  }

  // MARK: Extended attributes

  private static func attributes(of descriptor: Int32) throws(Errno) -> [(Name, [UInt8])] {
    var names = [CChar](repeating: 0, count: 64 << 10)  // XATTR_LIST_MAX
    let count = cfiles_list_attributes(descriptor, &names, names.count)
    if count == -Int(EOPNOTSUPP) { return [] }
    guard count >= 0 else { throw Errno(rawValue: Int32(-count)) }
    var attributes: [(Name, [UInt8])] = []
    for bytes in names.prefix(count).split(separator: 0) {
      let name: Name = bytes + [0]
      // `system.` is the access control list, which is kept by itself, and the filesystem's own.
      guard !text(name).hasPrefix("system.") else { continue }
      if let value = try attribute(name, of: descriptor) { attributes.append((name, value)) }
    }
    return attributes
  }

  /// The name without its end, as text that has all of its bytes.
  private static func text(_ name: Name) -> String {
    RawArgument.text(of: name.dropLast().map(UInt8.init(bitPattern:)))
  }

  /// - Returns: `nil` if the file has none of the name, or the filesystem none at all.
  private static func attribute(
    _ name: UnsafePointer<CChar>, of descriptor: Int32
  ) throws(Errno) -> [UInt8]? {
    var value = [UInt8](repeating: 0, count: 64 << 10)  // XATTR_SIZE_MAX
    let count = cfiles_get_attribute(descriptor, name, &value, value.count)
    if count >= 0 { return Array(value.prefix(count)) }
    let error = Int32(-count)
    // EINVAL: what /proc says to names it does not know.
    guard [ENODATA, EOPNOTSUPP, EINVAL, EPERM].contains(error) else { throw Errno(rawValue: error) }
    return nil
  }
}
