// A kernel imports KernelMemory and nothing else: the layers that it calls come with it. Magazines and ACPI do not: no
// declaration of theirs is public.

@_exported import BlockDevices
@_exported import CPlatform
@_exported import ContiguousMemory
@_exported import KernelSpace
@_exported import Kmem
@_exported import MemoryPrimitives
@_exported import PageTables
@_exported import Paging
@_exported import PhysicalMemory
@_exported import Vmem
@_exported import Zsmalloc
