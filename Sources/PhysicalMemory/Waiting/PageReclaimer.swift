// Reclaiming pages where no page daemon has a thread: a request that waits for frames does the daemon's work itself.
//
// The layer that has pages registers itself here, because it lies above.

import MemoryPrimitives

/// The procedure that reclaims pages: a C function and its context.
package struct PageReclaimer {
  /// Reclaims pages until so many frames are free, and answers how many became free: none where a thread does it.
  /// Sleeps.
  package typealias ReclaimPages =
    @convention(c) (_ context: UnsafeMutableRawPointer?, _ frames: UInt64) -> UInt64

  let context: UnsafeMutableRawPointer?
  let reclaimPages: ReclaimPages

  /// Makes a procedure of a function and its context.
  package init(_ context: UnsafeMutableRawPointer?, reclaimPages: @escaping ReclaimPages) {
    self.context = context
    self.reclaimPages = reclaimPages
  }
}

extension FrameAllocator {
  /// Sets the procedure that reclaims pages. Once, while no request waits.
  package func setPageReclaimer(_ reclaimer: PageReclaimer) { state.pointee.pageReclaimer = reclaimer }

  /// Reclaims pages until `frames` are free, if this thread has to. Answers whether any became free.
  func reclaimPages(until frames: UInt64) -> Bool {
    guard let reclaimer = state.pointee.pageReclaimer else { return false }
    return reclaimer.reclaimPages(reclaimer.context, frames) > 0
  }
}
