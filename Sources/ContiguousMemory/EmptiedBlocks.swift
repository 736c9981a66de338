// Blocks that are emptied for requests of physical memory that may wait.

import MemoryPrimitives
import PhysicalMemory

extension ContiguousAllocator {
  /// The procedure that physical memory calls. The state of this instance must stay where it is.
  var blockEmptier: BlockEmptier {
    BlockEmptier(UnsafeMutableRawPointer(state)) { context, order, priority in
      let allocator = ContiguousAllocator(
        state: context.unsafelyUnwrapped.assumingMemoryBound(to: ContiguousAllocator.State.self))
      let order = BlockOrder(order)
      var request = ContiguousRequest(order.frames)
      request.constraints.alignment = Alignment(order.frames.bytes.rawValue) ?? .page
      request.priority = AllocationPriority(rawValue: priority) ?? .normal
      do throws(ContiguousFailure) { return try allocator.emptyBlock(request).first.rawValue } catch {
        return FrameNumber.none.rawValue
      }
    }
  }

  /// Empties a block; the request that needs it records its own refusal.
  private func emptyBlock(_ request: ContiguousRequest) throws(ContiguousFailure) -> FrameRun {
    var attempt = ReclaimAttempt(self, request)
    let run = try attempt.reclaimRun { _ in }
    // The pages that it moved and wrote are logged.
    attempt.log(nil)
    return run
  }
}
