// Where page tables, slabs of tags and other metadata get single frames from, without knowing who
// gives them: early memory during boot, the buddy queues afterwards.

/// A supply of single frames. A frame arrives with unknown contents.
public struct FrameSource {
  let context: UnsafeMutableRawPointer?
  let taking: @convention(c) (UnsafeMutableRawPointer?) -> UInt32
  let giving: @convention(c) (UnsafeMutableRawPointer?, UInt32) -> Void

  /// `take` answers a frame number, or all ones when there is none.
  public init(
    _ context: UnsafeMutableRawPointer?,
    take: @escaping @convention(c) (UnsafeMutableRawPointer?) -> UInt32,
    give: @escaping @convention(c) (UnsafeMutableRawPointer?, UInt32) -> Void
  ) {
    self.context = context
    taking = take
    giving = give
  }

  /// A frame, or nil when there is none. Call it with no spin lock held.
  public func take() -> FrameNumber? {
    let frame = FrameNumber(taking(context))
    return frame == .none ? nil : frame
  }

  public func give(_ frame: FrameNumber) { giving(context, frame.rawValue) }
}
