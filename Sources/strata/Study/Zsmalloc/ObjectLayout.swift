// A way to lay objects of 1 to 4096 bytes out in frames, and the frames that it holds.
//
// The layouts beside our own are models: they know sizes, and no contents. Their frames are real ones of a frame
// allocator, those of their tables too.

import MemoryPrimitives

protocol ObjectLayout: AnyObject {
  /// Whether `compact` moves anything.
  var canCompact: Bool { get }
  /// Frames and metadata at this moment.
  var held: HeldFrames { get }
  /// Stores an object, and answers its number; nil where it is refused, and nothing has changed.
  func store(_ size: Int) -> Int?
  func free(_ object: Int)
  func compact()
}

/// A layout that says where an object is, so that a test can look for overlaps.
protocol ModelLayout: ObjectLayout {
  /// The bytes of an object with its header, in their order.
  func parts(of object: Int) -> [ObjectPart]
}

/// Bytes of one frame.
struct ObjectPart: Equatable {
  var frame: FrameNumber
  var bytes: Range<Int>

  /// The bytes from `start` on, in frames of which each follows the one before.
  static func parts(from start: Int, count: Int, in frames: [FrameNumber]) -> [ObjectPart] {
    let size = Int(Page.size)
    var (parts, at): ([ObjectPart], Int) = ([], start)
    while at < start + count {
      let end = min(start + count, (at / size + 1) * size)
      let first = at % size
      parts.append(ObjectPart(frame: frames[at / size], bytes: first..<(first + end - at)))
      at = end
    }
    return parts
  }
}

/// The frames that a layout holds.
struct HeldFrames: Equatable {
  /// Frames of objects.
  var data: UInt64
  /// Frames of tables.
  var tables: UInt64
  /// Bytes of metadata in the frames of objects.
  var headers: UInt64

  var frames: UInt64 { data + tables }
  /// Bytes of metadata: headers, and the tables as they are.
  var metadata: UInt64 { headers + tables * Page.size }
}

extension ObjectLayout {
  var canCompact: Bool { false }
  func compact() {}
}
