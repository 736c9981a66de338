// Kmem's large requests come from kernel space: wired pages behind addresses of `heap_va`, or of
// `interrupt_va` at interrupt priority.

import Kmem
import KernelSpace
import MemoryPrimitives
import PhysicalMemory

extension KernelAddressSpace {
  /// Whole pages for kmem. This value of the handle must stay at `place` as long as kmem does.
  static func largePages(_ place: UnsafeMutablePointer<KernelAddressSpace>) -> LargePages {
    LargePages(
      UnsafeMutableRawPointer(place),
      allocatePages: { context, pages, priority, zeroed, type, site, deadline in
        let space = context.unsafelyUnwrapped.load(as: KernelAddressSpace.self)
        let priority = AllocationPriority(rawValue: priority) ?? .normal
        do throws(KernelSpaceError) {
          return try space.allocateWired(
            PageCount(pages), from: priority == .interrupt ? .interrupt : .heap, role: .kmem,
            priority: priority, wait: .until(Tick(deadline)),
            contents: zeroed ? .zero : .unknown, failures: .byCaller,
            for: FrameOwner("kmem, a large request", type: type, at: CallSite(rawValue: site)),
            at: CallSite(rawValue: site)
          ).rawValue
        } catch {
          return 0
        }
      },
      freePages: { context, address, pages, site in
        context.unsafelyUnwrapped.load(as: KernelAddressSpace.self)
          .freeWired(VirtualAddress(address), PageCount(pages), at: CallSite(rawValue: site))
      })
  }
}
