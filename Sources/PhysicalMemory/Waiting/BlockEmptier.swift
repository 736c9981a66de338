// Emptying a block for a request that may wait: frames enough are free, but they lie scattered.
//
// The layer of contiguous memory has the procedure: it moves or launders what is in the way of one run. It registers
// itself here, because it lies above. The frames come back as a contiguous run, and get the role of the request.

import MemoryPrimitives

/// The procedure that empties a block: a C function and its context.
package struct BlockEmptier {
  /// Empties an aligned run of 2^`order` frames, and answers its first frame, or `FrameNumber.none`. The frames have the
  /// role `contiguous` and one wire. Sleeps.
  package typealias EmptyBlock =
    @convention(c) (_ context: UnsafeMutableRawPointer?, _ order: UInt8, _ priority: UInt8) -> UInt32

  let context: UnsafeMutableRawPointer?
  let emptyBlock: EmptyBlock

  /// Makes a procedure of a function and its context.
  package init(_ context: UnsafeMutableRawPointer?, emptyBlock: @escaping EmptyBlock) {
    self.context = context
    self.emptyBlock = emptyBlock
  }
}

extension FrameAllocator {
  /// Sets the procedure that empties a block. Once, while no request waits.
  package func setBlockEmptier(_ emptier: BlockEmptier) { state.pointee.blockEmptier = emptier }

  /// Empties a block for a request; nil when its order is 0, no layer can empty one, or none can be emptied.
  @inline(never) func emptyBlock(for request: WaitingRequest) -> FrameNumber? {
    guard request.order > BlockOrder(0), let emptier = state.pointee.blockEmptier else { return nil }
    let first = FrameNumber(
      emptier.emptyBlock(emptier.context, request.order.rawValue, request.priority.rawValue))
    guard first != .none else { return nil }
    setRole(of: FrameRun(first: first, count: request.order.frames), request.role, for: request.owner)
    return first
  }

  /// Gives the frames of a contiguous run, which is the caller's, another role and owner. A step a frame.
  package func setRole(of run: FrameRun, _ role: FrameRole, for owner: FrameOwner) {
    let end = run.end.rawValue
    var at = run.first.rawValue
    while at < end {
      let pageblockEnd = Pageblock.end(at, end)
      let count = pageblockEnd - at
      let record = table.record(at)
      domain.withLock { _ in
        table.accountFreed(at, count, .contiguous)
        table.accountAllocated(at, count, role)
        table.subtract(UInt64(count), from: .contiguous)
        table.add(UInt64(count), to: role)
        for i in 0..<Int(count) { record.after(i).handOut(role, .wiredOnce, owner) }
      }
      at = pageblockEnd
    }
  }
}
