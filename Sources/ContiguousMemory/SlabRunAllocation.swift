// Runs of frames for kmem's contiguous slabs.

import Kmem
import KernelSpace
import MemoryPrimitives
import PageTables
import PhysicalMemory

extension ContiguousAllocator {
  /// The source of runs that kmem calls. The state of this instance must stay where it is.
  var slabRuns: SlabRuns {
    SlabRuns(
      UnsafeMutableRawPointer(state),
      allocateRun: { context, request in
        ContiguousAllocator(context).allocate(request.load(as: SlabRunRequest.self))?.first.rawValue
          ?? FrameNumber.none.rawValue
      },
      freeRun: { context, first, count, attribute in
        let run = FrameRun(first: FrameNumber(first), count: PageCount(UInt64(count)))
        let allocator = ContiguousAllocator(context)
        if attribute != CacheAttribute.writeBack.rawValue {
          allocator.space.restoreAlias(run.first.address, run.count)
        }
        allocator.physical.free(run)
      })
  }

  /// Allocates a run for a slab, and maps its alias in the direct map with the attribute. Kmem records a refusal.
  private func allocate(_ slab: SlabRunRequest) -> FrameRun? {
    var request = ContiguousRequest(slab.count, where: slab.constraints, for: slab.owner)
    request.priority = slab.priority
    request.requester = slab.requester
    var attempt = ReclaimAttempt(self, request)
    guard let run = slab.mayWait ? emptiedRun(&attempt) : freeRun(&attempt) else { return nil }
    physical.setRole(of: run, .slab, for: slab.owner)
    do throws(PageTableError) {
      try space.setAlias(run, slab.attribute)
      return run
    } catch {
      physical.free(run)
      return nil
    }
  }

  private func freeRun(_ attempt: inout ReclaimAttempt) -> FrameRun? {
    do throws(ContiguousFailure) { return try attempt.freeRun() } catch { return nil }
  }

  private func emptiedRun(_ attempt: inout ReclaimAttempt) -> FrameRun? {
    do throws(ContiguousFailure) {
      let run = try attempt.reclaimRun { _ in }
      attempt.log(nil)
      return run
    } catch {
      return nil
    }
  }
}
