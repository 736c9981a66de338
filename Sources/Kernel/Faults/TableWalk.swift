// A walk through the live page tables, as the processor does it (Intel SDM vol. 3A, 4.5), through the
// direct map. It trusts nothing but CR3, because it runs when something has gone wrong.

import CPlatform
import MemoryPrimitives

/// The entries of the page tables for one address.
struct TableWalk {
  /// The value and the address of each entry, the highest level first.
  var entries: InlineArray<4, UInt64> = .init(repeating: 0)
  var places: InlineArray<4, UInt64> = .init(repeating: 0)
  /// Entries read: the last is a leaf, or not present.
  private(set) var depth = 0

  private enum Bit {
    static var present: UInt64 { 1 << 0 }
    static var writable: UInt64 { 1 << 1 }
    static var large: UInt64 { 1 << 7 }
    static var noExecute: UInt64 { 1 << 63 }
    static var address: UInt64 { 0x000f_ffff_ffff_f000 }
  }

  init(_ address: UInt64) {
    var table = cp_read_cr3() & Bit.address
    while depth < 4 {
      let level = 4 - depth
      let place = table + (address >> UInt64(12 + 9 * (level - 1)) & 511) * 8
      let entry = Executive.directMap.pointer(to: PhysicalAddress(place)).load(as: UInt64.self)
      places[depth] = place
      entries[depth] = entry
      depth += 1
      if entry & Bit.present == 0 || level == 1 || (level < 4 && entry & Bit.large != 0) { return }
      table = entry & Bit.address
    }
  }

  /// The level of the last entry, 1 to 4.
  var level: Int { 5 - depth }
  var last: UInt64 { entries[depth - 1] }
  /// Also true of an address that is not canonical and differs from a mapped one only in the bits that no level uses.
  /// Check `isReadable` before memory is read.
  var isMapped: Bool { last & Bit.present != 0 }
  /// Whether reading at `address` raises no exception.
  static func isReadable(_ address: UInt64) -> Bool {
    let top = Int64(bitPattern: address) >> 47
    return (top == 0 || top == -1) && TableWalk(address).isMapped
  }
  /// Whether every level allows it.
  var isWritable: Bool { all(Bit.writable) }
  var isExecutable: Bool {
    for i in 0..<depth where entries[i] & Bit.noExecute != 0 { return false }
    return isMapped
  }

  private func all(_ bit: UInt64) -> Bool {
    for i in 0..<depth where entries[i] & bit == 0 { return false }
    return isMapped
  }

  /// `level 4, 3, 2 present; level 1 entry 16 at 0x0fd9_2080: not present`.
  func describe(_ address: UInt64) -> Line {
    var line = Line()
    if depth > 1 {
      line.append("level 4")
      for i in 1..<(depth - 1) { line.append(line: ", \(4 - i)") }
      line.append(" present; ")
    }
    let index = address >> UInt64(12 + 9 * (level - 1)) & 511
    line.append(line: "level \(level) entry \(index) at \(hex: places[depth - 1], digits: 8): ")
    guard isMapped else {
      line.append("not present")
      if last != 0 { line.append(line: ", its other bits are \(hex: last)") }
      return line
    }
    switch level {
    case 1: line.append("4 KiB")
    case 2: line.append("2 MiB")
    default: line.append("1 GiB")
    }
    let size = UInt64(1) << UInt64(12 + 9 * (level - 1))
    line.append(line: " at \(hex: last & Bit.address & ~(size - 1), digits: 8)")
    line.append(isWritable ? ", read-write" : ", read-only")
    line.append(isExecutable ? ", executable" : ", no-execute")
    return line
  }
}
