// Frames of a caller, in any order, behind new consecutive addresses (vmap).

import MemoryPrimitives
import PageTables
import PhysicalMemory
import Vmem

extension KernelAddressSpace {
  /// Maps each of `frames`, in their order, at new addresses, by leaves of 4 KiB. The frames stay the caller's, who
  /// has allocated them and keeps them write-back. `unmapFrames` is the reverse. Throws `noMemory` without memory for
  /// tables or tags, `noAddressSpace`, or `badConstraint` for no frames. Some thousand instructions; unmapping asks
  /// all processors.
  package func mapFrames(
    _ frames: UnsafeBufferPointer<FrameNumber>, protection: Protection = .kernelData,
    failures: FailureRecording = .here, at site: CallSite = .here
  ) throws(KernelSpaceError) -> VirtualAddress {
    let request = RangeRequest(
      kind: .callerFrames, count: PageCount(UInt64(frames.count)), failures: failures, site: site)
    let address = try reserve(request)
    do throws(PageTableError) {
      try tables.map(address, frames: frames, protection: protection, tag: RangeKind.callerFrames.tag)
    } catch {
      release(.callerFrames, address, request.count, site)
      throw failed(.noMemory, request)
    }
    count(.callerFrames, mapped: request.count)
    return address
  }
}
