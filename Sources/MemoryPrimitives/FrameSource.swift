// A source of single frames for page tables, pages of tags and other metadata. It hides where they come from: early
// memory during boot, the buddy queues afterwards.

/// A supply of single frames. A frame arrives with unknown contents.
public struct FrameSource {
  let context: UnsafeMutableRawPointer?
  let allocate: @convention(c) (UnsafeMutableRawPointer?) -> UInt32
  let free: @convention(c) (UnsafeMutableRawPointer?, UInt32) -> Void

  /// Makes a source of two functions. `take` answers a frame number, or all ones when there is none.
  public init(
    _ context: UnsafeMutableRawPointer?,
    take: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt32,
    give: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt32) -> Void
  ) {
    self.context = context
    allocate = take
    free = give
  }

  /// Allocates a frame; nil when there is none. Call it with no spin lock held.
  public func take() -> FrameNumber? {
    let frame = FrameNumber(allocate(context))
    return frame == .none ? nil : frame
  }

  /// Frees a frame that `take` returned. Call it with no spin lock held.
  public func give(_ frame: FrameNumber) { free(context, frame.rawValue) }
}
