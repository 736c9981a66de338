// The numbers of memory objects: a table of 512 tables of 512 words. A word is a descriptor's address, or twice the
// next free number plus one.

import MemoryPrimitives

/// Object numbers in use and free: plain data under its lock.
struct ObjectNumbers {
  /// Words of a table, which is a frame.
  static var tableLength: UInt32 { UInt32(Page.size) / 8 }
  private static var shift: UInt32 { UInt32(tableLength.trailingZeroBitCount) }
  private static var mask: UInt32 { tableLength - 1 }
  static var storage: ByteCount { ByteCount(Page.size) }

  private let tables: UnsafeMutablePointer<UInt>
  private(set) var limit: UInt32 = 0
  /// Number 0, which is never reserved, ends the list.
  private var firstFree: UInt32 = 0

  init(_ memory: UnsafeMutableRawPointer) {
    tables = memory.bindMemory(to: UInt.self, capacity: Int(Self.tableLength))
    for i in 0..<Int(Self.tableLength) { tables[i] = 0 }
  }

  private func word(_ number: UInt32) -> UnsafeMutablePointer<UInt>? {
    guard number < limit,
      let table = UnsafeMutablePointer<UInt>(bitPattern: tables[Int(number >> Self.shift)])
    else { return nil }
    return table + Int(number & Self.mask)
  }

  /// Adds the numbers of one more table, a zeroed page. Returns false when a number is free already, or the table of
  /// tables is full.
  mutating func grow(_ table: UnsafeMutableRawPointer) -> Bool {
    guard firstFree == 0, limit < Self.tableLength * Self.tableLength else { return false }
    tables[Int(limit >> Self.shift)] = UInt(bitPattern: table)
    let first = limit
    limit += Self.tableLength
    for number in stride(from: limit - 1, through: max(1, first), by: -1) {
      word(number)?.pointee = UInt(firstFree) * 2 + 1
      firstFree = number
    }
    return true
  }

  /// Reserves a free number; nil when the table must grow first.
  mutating func reserve() -> UInt32? {
    guard firstFree != 0, let word = word(firstFree) else { return nil }
    let number = firstFree
    firstFree = UInt32(word.pointee / 2)
    word.pointee = 0
    return number
  }

  /// Makes a reserved number name the descriptor at `memory`.
  func set(_ number: UInt32, _ memory: UnsafeMutableRawPointer) {
    word(number)?.pointee = UInt(bitPattern: memory)
  }

  /// Makes a number free again.
  mutating func release(_ number: UInt32) {
    word(number)?.pointee = UInt(firstFree) * 2 + 1
    firstFree = number
  }

  /// The descriptor that a number names, if any.
  func memory(_ number: UInt32) -> UnsafeMutableRawPointer? {
    guard let word = word(number), word.pointee & 1 == 0 else { return nil }
    return UnsafeMutableRawPointer(bitPattern: word.pointee)
  }
}
