// Names for code addresses, resolved inside the kernel: the table that Scripts/symbols makes of a first
// link and Scripts/link puts at the image's end.
//
// Layout, in words of 32 bits: the count of functions and the count of traps. Then, for each function, its offset
// from the start of the text and the position of its name (bytes from the table's start), sorted by offset. Then, for
// each trap, its offset, the positions of its message and its file, and the line. Then the texts, each with a zero
// after it.

import CPlatform
import MemoryPrimitives

/// A trap that the compiler put into the code. It is the only record of which check failed.
struct TrapSite {
  let message: UnsafeBufferPointer<UInt8>
  let file: UnsafeBufferPointer<UInt8>
  let line: UInt32
}

enum Symbols {
  private static var table: UnsafeRawPointer {
    UnsafeRawPointer(bitPattern: UInt(Image.layout.symbols.first)).unsafelyUnwrapped
  }

  private static func word(_ index: Int) -> UInt32 { table.load(fromByteOffset: index * 4, as: UInt32.self) }

  private static var functionCount: Int { Int(word(0)) }
  private static var trapCount: Int { Int(word(1)) }

  private static func text(at offset: UInt32) -> UnsafeBufferPointer<UInt8> {
    let start = (table + Int(offset)).assumingMemoryBound(to: UInt8.self)
    var count = 0
    while start[count] != 0 { count += 1 }
    return UnsafeBufferPointer(start: start, count: count)
  }

  /// Finds the last of `count` rows of `width` words, from word `first` on, that begins at or before `offset`.
  private static func row(_ first: Int, _ count: Int, _ width: Int, upTo offset: UInt32) -> Int? {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low + high) / 2
      if word(first + middle * width) <= offset { low = middle + 1 } else { high = middle }
    }
    return low == 0 ? nil : first + (low - 1) * width
  }

  private static func offset(of address: UInt64) -> UInt32? {
    Image.isCode(address) ? UInt32(address - Image.layout.text.first) : nil
  }

  /// The function that holds `address`, and how far into it.
  static func function(at address: UInt64) -> (name: UnsafeBufferPointer<UInt8>, distance: UInt64)? {
    guard let offset = offset(of: address), let row = row(2, functionCount, 2, upTo: offset) else {
      return nil
    }
    return (text(at: word(row + 1)), UInt64(offset - word(row)))
  }

  /// The trap at exactly `address`.
  static func trap(at address: UInt64) -> TrapSite? {
    guard let offset = offset(of: address),
      let row = row(2 + functionCount * 2, trapCount, 4, upTo: offset), word(row) == offset
    else { return nil }
    return TrapSite(message: text(at: word(row + 1)), file: text(at: word(row + 2)), line: word(row + 3))
  }

  /// `KmemAllocator.free(_:size:type:) +0x9a`, or the bare address. `back` is 1 for a return address, which may
  /// already belong to the next function.
  static func place(_ address: UInt64, back: UInt64 = 0) -> Line {
    guard let (name, distance) = function(at: address &- back) else {
      return "\(VirtualAddress(address))"
    }
    var line = Line()
    line.append(bytes: name)
    line.append(" +")
    line.append(offset: distance + back)
    return line
  }
}

extension Line {
  /// Appends four groups of four digits, without `0x`, as registers are printed.
  mutating func append(register value: UInt64) {
    for position in stride(from: 60, through: 0, by: -4) {
      let digit = UInt8(truncatingIfNeeded: value >> UInt64(position)) & 15
      append(byte: digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") - 10 + digit)
      if position % 16 == 0 && position != 0 { append(byte: UInt8(ascii: "_")) }
    }
  }
}
