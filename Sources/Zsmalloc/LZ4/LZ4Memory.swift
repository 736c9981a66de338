// Memory as the LZ4 codec reads and writes it: at byte offsets from a start, aligned or not.
//
// These two types are the only ones of the codec that touch a buffer. They check nothing: each caller has compared
// its offsets with the ends of the buffers. Eight bytes are the most that one step moves, because the kernel has no
// vector registers.
//
// A function with "coarsely" in its name works in whole steps and may touch up to seven bytes behind the last one. It
// is for the middle of a buffer. The exact functions end with single bytes.

/// Bytes that the codec reads.
struct LZ4Source {
  private let start: UnsafeRawPointer

  init(_ start: UnsafeRawPointer) { self.start = start }

  /// An empty buffer may have no address. Nothing is ever read from it.
  init(_ bytes: UnsafeRawBufferPointer) {
    start = bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 1).unsafelyUnwrapped
  }

  @inline(always) func byte(at offset: Int) -> UInt8 { start.load(fromByteOffset: offset, as: UInt8.self) }

  @inline(always) func two(at offset: Int) -> UInt16 {
    UInt16(littleEndian: start.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }

  @inline(always) func four(at offset: Int) -> UInt32 {
    UInt32(littleEndian: start.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }

  @inline(always) func eight(at offset: Int) -> UInt64 {
    UInt64(littleEndian: start.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }
}

/// Bytes that the codec writes, and reads again where a match repeats them.
struct LZ4Target {
  private let start: UnsafeMutableRawPointer

  init(_ bytes: UnsafeMutableRawBufferPointer) {
    start = bytes.baseAddress ?? UnsafeMutableRawPointer(bitPattern: 1).unsafelyUnwrapped
  }

  /// The same memory, to be read.
  @inline(always) var written: LZ4Source { LZ4Source(start) }

  @inline(always) func store<Word: FixedWidthInteger & BitwiseCopyable>(_ word: Word, at offset: Int) {
    start.storeBytes(of: word.littleEndian, toByteOffset: offset, as: Word.self)
  }

  /// Copies `count` bytes, and up to seven more.
  @inline(always) func copyCoarsely(_ count: Int, from source: LZ4Source, at origin: Int, to offset: Int) {
    var done = 0
    repeat {
      store(source.eight(at: origin &+ done), at: offset &+ done)
      done &+= 8
    } while done < count
  }

  /// Copies `count` bytes.
  @inline(always) func copyExactly(_ count: Int, from source: LZ4Source, at origin: Int, to offset: Int) {
    var done = 0
    if count > 7 {
      done = count &- 7
      copyCoarsely(done, from: source, at: origin, to: offset)
    }
    while done < count {
      store(source.byte(at: origin &+ done), at: offset &+ done)
      done &+= 1
    }
  }

  /// Repeats the `distance` bytes before `offset`, until `count` bytes and up to seven more are written.
  @inline(always) func repeatCoarsely(_ count: Int, distance: Int, to offset: Int) {
    if distance >= 8 {
      copyCoarsely(count, from: written, at: offset &- distance, to: offset)
    } else {
      repeatPattern(count, distance: distance, to: offset)
    }
  }

  /// Repeats the `distance` bytes before `offset`, until `count` bytes are written.
  @inline(always) func repeatExactly(_ count: Int, distance: Int, to offset: Int) {
    var done = 0
    if count > 7 {
      done = count &- 7
      repeatCoarsely(done, distance: distance, to: offset)
    }
    while done < count {
      store(written.byte(at: offset &+ done &- distance), at: offset &+ done)
      done &+= 1
    }
  }

  /// Repeats fewer than eight bytes: fills a word with them, and stores it at multiples of `distance`.
  @inline(always) private func repeatPattern(_ count: Int, distance: Int, to offset: Int) {
    var bits = UInt64(truncatingIfNeeded: distance &* 8)
    var pattern = written.eight(at: offset &- distance) & ((1 &<< bits) &- 1)
    while bits < 64 {
      pattern |= pattern &<< bits
      bits &*= 2
    }
    // The largest multiple of the distance that is at most 8.
    let step = distance > 4 ? distance : distance == 3 ? 6 : 8
    var done = 0
    repeat {
      store(pattern, at: offset &+ done)
      done &+= step
    } while done < count
  }
}
