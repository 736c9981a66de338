; From a loader to Swift: the 32-bit entries for multiboot2 and PVH, the first page tables, long mode.
;
; Both loaders leave the processor in 32-bit protected mode with flat segments and paging off
; (Multiboot2 Specification 2.0, 3.3 "I386 machine state"; Xen docs/misc/pvh.pandoc). The stub checks
; that the processor can do what Strata needs, or refuses on the serial port; maps
;
;   0                       the first 4 GiB, leaves of 2 MiB, executable: this code runs there
;   0xffff_8000_0000_0000   the same, no-execute: the direct map
;   0xffff_ffff_8000_0000   the image; its first 2 MiB by pages, so that guard pages can be left out
;
; and calls `kernel_main(loader, record, image, time of entry)`. The loader's record is read there, through the direct
; map. Everything in sections .boot* is linked at its physical address, and is of no use afterwards.

bits 32

VIRTUAL equ 0xffffffff80000000

MULTIBOOT2_HEADER equ 0xe85250d6
MULTIBOOT2_HANDED equ 0x36d76289
PVH_HANDED        equ 0x336ec578

LOADER_MULTIBOOT2 equ 1         ; enum cp_loader
LOADER_PVH        equ 2

PRESENT   equ 1 << 0
WRITABLE  equ 1 << 1
LARGE     equ 1 << 7

COM1       equ 0x3f8
DEBUG_EXIT equ 0xf4
REFUSED    equ 0x12             ; QEMU's exit status 37
PORT_LIMIT equ 1 << 20       ; reads of its status, about a second

PROCESSOR_BLOCK_SIZE  equ 8192  ; bare_machine.h asserts that what it describes fits
BOOT_INFORMATION_SIZE equ 2232 + 1024 * 24
STORAGE_SIZE          equ 65536

extern kernel_main, interrupt_vectors, interrupt_return
extern image_start, image_end_physical, image_boot_end
extern image_stacks_start, image_stacks_end, image_text_start, image_text_end
extern image_rodata_start, image_rodata_end, image_data_start, image_data_end
extern image_symbols_start, image_symbols_end
extern trampoline, trampoline_end, processor_start, cp_thread_entry
global boot_segments, boot_tables

; --------------------------------------------------------------------------------------------------
section .boot.header progbits alloc noexec nowrite align=8

header:
        dd MULTIBOOT2_HEADER
        dd 0                                    ; i386
        dd header.end - header
        dd -(MULTIBOOT2_HEADER + (header.end - header))
        ; Modules at page boundaries.
        dw 6, 0
        dd 8
        dw 0, 0                                 ; the last tag
        dd 8
.end:

section .note.xen note alloc noexec nowrite align=4

        dd 4, 8, 18                             ; sizes of name and value, XEN_ELFNOTE_PHYS32_ENTRY
        db "Xen", 0
        dq entry_pvh

; --------------------------------------------------------------------------------------------------
section .boot.text progbits alloc exec nowrite align=16

global entry_multiboot2, entry_pvh

entry_multiboot2:
        cli
        cld
        mov esp, boot_stack.end
        mov ebp, eax
        call note_time
        call serial_start
        mov esi, says.loader
        cmp ebp, MULTIBOOT2_HANDED
        jne refuse
        mov ebp, LOADER_MULTIBOOT2
        jmp check

entry_pvh:
        cli
        cld
        mov esp, boot_stack.end
        call note_time
        call serial_start
        mov esi, says.loader
        cmp dword [ebx], PVH_HANDED
        jne refuse
        mov ebp, LOADER_PVH

; Firmware keeps data at the top of memory, and may overwrite an image that reaches there: on so small a machine the
; code behind this stub may be lost. GRUB checks that itself. (struct hvm_memmap_table_entry:
; address, size, type; 24 bytes.)
        mov esi, says.memory
        mov edi, [ebx + 40]
        mov ecx, [ebx + 48]
        test ecx, ecx
        jz check                                ; no map: Swift reports it
.range: cmp dword [edi + 16], 1
        jne .next
        cmp dword [edi + 4], 0
        jne .next
        cmp dword [edi], image_start
        ja .next
        cmp dword [edi + 12], 0                 ; 4 GiB and more
        jne check
        mov eax, [edi]
        add eax, [edi + 8]
        jc check
        cmp eax, image_end_physical
        jae check
.next:  add edi, 24
        loop .range
        jmp refuse

; Here ebp is the loader and ebx its record; both survive until Swift is called.
check:
        mov edi, ebx                            ; cpuid takes ebx
        pushfd                                  ; a processor with CPUID lets bit 21 change
        pop eax
        mov ecx, eax
        xor eax, 1 << 21
        push eax
        popfd
        pushfd
        pop eax
        mov esi, says.long_mode
        cmp eax, ecx
        je refuse
        mov eax, 0x80000000
        cpuid
        mov esi, says.long_mode
        cmp eax, 0x80000001
        jb refuse
        mov eax, 0x80000001
        cpuid
        mov esi, says.long_mode
        bt edx, 29
        jnc refuse
        mov esi, says.no_execute
        bt edx, 20
        jnc refuse
        mov ebx, edi

; The first 4 GiB, for 0 and for the direct map.
        mov edi, tables.low_2
        mov eax, PRESENT | WRITABLE | LARGE
        xor edx, edx
        mov ecx, 4 * 512
.low:   mov [edi], eax
        mov [edi + 4], edx
        add eax, 1 << 21
        add edi, 8
        loop .low

        mov edi, tables.low_3
        mov eax, tables.low_2 + (PRESENT | WRITABLE)
        mov ecx, 4
.low_3: mov [edi], eax
        add eax, 4096
        add edi, 8
        loop .low_3

; The image: its first 2 MiB by pages, without the guards, the rest by leaves of 2 MiB as far as it goes.
        mov edi, tables.image_1
        mov eax, PRESENT | WRITABLE
        mov ecx, 512
.pages: mov [edi], eax
        add eax, 4096
        add edi, 8
        loop .pages
        xor eax, eax
        mov edi, tables.image_1
        mov ecx, [guards.count]
.guard: mov edx, [guards + ecx * 4 - 4]
        shr edx, 12
        mov [edi + edx * 8], eax
        loop .guard

        mov edi, tables.image_2
        mov eax, tables.image_1 + (PRESENT | WRITABLE)
        mov [edi], eax
        mov eax, (1 << 21) | PRESENT | WRITABLE | LARGE
.image: add edi, 8
        cmp eax, image_end_physical
        jae .image_done
        mov [edi], eax
        add eax, 1 << 21
        jmp .image
.image_done:
        mov dword [tables.image_3 + 510 * 8], tables.image_2 + (PRESENT | WRITABLE)

        mov eax, tables.low_3 + (PRESENT | WRITABLE)
        mov [tables.top], eax
        mov [tables.top + 256 * 8], eax
        mov dword [tables.top + 256 * 8 + 4], 1 << 31      ; no-execute
        mov dword [tables.top + 511 * 8], tables.image_3 + (PRESENT | WRITABLE)

        mov eax, tables.top
        mov cr3, eax
        mov eax, 1 << 5                         ; CR4.PAE
        mov cr4, eax
        mov ecx, 0xc0000080                     ; EFER: long mode, no-execute
        rdmsr
        or eax, (1 << 8) | (1 << 11)
        wrmsr
        mov eax, (1 << 31) | (1 << 16) | (1 << 5) | (1 << 1) | 1     ; CR0: PG, WP, NE, MP, PE
        mov cr0, eax
        lgdt [segments.register]
        jmp 8:long_mode

; Prints esi and stops with the status for a machine that Strata refuses.
refuse:
        lodsb
        test al, al
        jz .stop
        mov ah, al
        mov dx, COM1 + 5
        mov ecx, PORT_LIMIT
.wait:  in al, dx
        test al, 1 << 5
        loopz .wait
        jz .stop                                ; a port that accepts nothing
        mov al, ah
        mov dx, COM1
        out dx, al
        jmp refuse
.stop:  mov al, REFUSED
        out DEBUG_EXIT, al
.halt:  cli
        hlt
        jmp .halt

; The time of entry: the cost of a boot is counted from here.
note_time:
        rdtsc
        mov [entry_time], eax
        mov [entry_time + 4], edx
        ret

; COM1: 115200 8N1, no interrupts. The FIFO stays off, because switching it on drops input.
serial_start:
        mov ecx, 6
        mov esi, serial_settings
.next:  lodsw
        movzx edx, al
        add edx, COM1
        mov al, ah
        out dx, al
        loop .next
        ret

bits 64
long_mode:
        mov eax, 16
        mov ds, eax
        mov es, eax
        mov ss, eax
        xor eax, eax
        mov fs, eax
        mov gs, eax
        mov rax, high
        jmp rax

section .boot.data progbits alloc noexec nowrite align=16

segments:
        dq 0
        dq 0x00af9b000000ffff                   ; code, 64 bits
        dq 0x00cf93000000ffff                   ; data
        dq 0x00cf9b000000ffff                   ; code, 32 bits, for processors on their way from real mode
.register:
        dw $ - segments - 1
        dd segments

; Register and value: interrupts, line control, divisor, line control, modem control.
serial_settings:
        db 1, 0x00,  3, 0x80,  0, 0x01,  1, 0x00,  3, 0x03,  4, 0x0b

guards: dd guard_0_physical, guard_1_physical, guard_2_physical
.count: dd 3
extern guard_0_physical, guard_1_physical, guard_2_physical

says:
.loader:     db "Strata was not started as multiboot2 or PVH demand it. Boot it with GRUB's "
             db "multiboot2 command or with qemu -kernel. Stopped, exit status 37.", 13, 10, 0
.long_mode:  db "Strata needs a 64-bit processor: this one has no long mode. "
             db "Stopped, exit status 37.", 13, 10, 0
.memory:     db "This machine is too small: the kernel's image does not fit into its memory. "
             db "Stopped, exit status 37.", 13, 10, 0
.no_execute: db "Strata needs no-execute pages: this processor has no NX, or the firmware hides it. "
             db "Stopped, exit status 37.", 13, 10, 0

section .boot.bss nobits alloc noexec write align=4096

tables:
.top:     resb 4096
.low_3:   resb 4096
.low_2:   resb 4 * 4096
.image_3: resb 4096
.image_2: resb 4096
.image_1: resb 4096
entry_time:
          resq 1
boot_stack:
          resb 256
.end:

; --------------------------------------------------------------------------------------------------
section .text progbits alloc exec nowrite align=16

; In the higher half: a stack with a guard, the words of processor 0, then Swift.
high:
        mov rsp, stack_boot.end
        mov rax, processor_0
        mov [rax], rax                          ; cp_processor.self
        mov rdx, rax
        shr rdx, 32
        mov ecx, 0xc0000101                     ; the base of gs
        wrmsr
        mov edi, ebp
        mov esi, ebx
        mov rdx, image
        mov rcx, [entry_time]
        xor ebp, ebp                            ; the last frame of any backtrace
        call kernel_main
.stop:  cli
        hlt
        jmp .stop

section .rodata progbits alloc noexec nowrite align=16

image:                                          ; struct cp_image
        dq VIRTUAL
        dq image_start, image_end_physical
        dq image_start, image_boot_end
        dq image_stacks_start, image_stacks_end
        dq image_text_start, image_text_end
        dq image_rodata_start, image_rodata_end
        dq image_data_start, image_data_end
        dq image_symbols_start, image_symbols_end
        dq stack_boot, stack_boot.end
        dq stack_double_fault, stack_double_fault.end
        dq stack_nmi, stack_nmi.end
        dq interrupt_vectors
        dq interrupt_return
        dq interrupt_table
        dq processor_0
        dq boot_information
        dq storage
        dq trampoline, trampoline_end
        dq processor_start
        dq cp_thread_entry

section .bss nobits alloc noexec write align=4096

interrupt_table:  resb 256 * 16
processor_0:      resb PROCESSOR_BLOCK_SIZE
storage:          resb STORAGE_SIZE
boot_information: resb BOOT_INFORMATION_SIZE

; Each stack has a page below it that no table maps: an overflow becomes a double fault with a report.
section .stacks nobits alloc noexec write align=4096

global guard_double_fault, guard_nmi, guard_boot
guard_double_fault: resb 4096
stack_double_fault: resb 32768
.end:
guard_nmi:          resb 4096
stack_nmi:          resb 32768
.end:
guard_boot:         resb 4096
stack_boot:         resb 65536
.end:

; For processors that come later.
boot_segments equ segments
boot_tables equ tables
