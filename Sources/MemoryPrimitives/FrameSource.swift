// A source of single frames for page tables, pages of tags and other metadata. It hides where they come from: early
// memory during boot, the buddy queues afterwards.

/// A supply of single frames. A frame arrives with unknown contents.
package struct FrameSource {
  /// Answers a frame number, or all ones when there is none. Its argument is the context.
  package typealias Allocate = @convention(c) (UnsafeMutableRawPointer?) -> UInt32

  let context: UnsafeMutableRawPointer?
  let allocateFrame: Allocate
  let freeFrame: @convention(c) (UnsafeMutableRawPointer?, UInt32) -> Void

  /// Makes a source of two functions.
  package init(
    _ context: UnsafeMutableRawPointer?,
    allocateFrame: @escaping Allocate,
    freeFrame: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt32) -> Void
  ) {
    self.context = context
    self.allocateFrame = allocateFrame
    self.freeFrame = freeFrame
  }

  /// The same source with another way to allocate: for another owner.
  package func allocating(by allocateFrame: @escaping Allocate) -> FrameSource {
    FrameSource(context, allocateFrame: allocateFrame, freeFrame: freeFrame)
  }

  /// Allocates a frame; nil when there is none. Call it with no spin lock held.
  package func allocate() -> FrameNumber? {
    let frame = FrameNumber(allocateFrame(context))
    return frame == .none ? nil : frame
  }

  /// Frees a frame that `allocate` returned. Call it with no spin lock held.
  package func free(_ frame: FrameNumber) { freeFrame(context, frame.rawValue) }
}
